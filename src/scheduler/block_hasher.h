// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <string_view>

#include "r1d/base/types.h"

struct evp_mac_ctx_st;  // NOLINT(readability-identifier-naming): OpenSSL's EVP_MAC_CTX

namespace r1d::scheduler {

// 128 bits that stand for a block's tokens and all that comes before them.
struct Digest {
  uint64_t low = 0;
  uint64_t high = 0;
  friend bool operator==(const Digest&, const Digest&) = default;
};

// The chain hash of the prefix cache: SipHash-2-4 with 128-bit output under a secret key, so that a
// client cannot aim its prompt at another one's entry, nor fill one bucket of the table.
// Threads: confined to the scheduler thread (the functions share one OpenSSL context).
// Source: Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012.
class BlockHasher {
 public:
  using Key = std::array<uint8_t, 16>;

  // A fresh key from the system's random source.
  [[nodiscard]] static Key random_key();

  explicit BlockHasher(const Key& key);

  // The digest that a sequence's first block has as its parent: requests with different salts share
  // no chain.
  [[nodiscard]] Digest root(std::string_view salt);

  // The digest of a block from its parent's and its own tokens.
  [[nodiscard]] Digest block(const Digest& parent, std::span<const TokenId> tokens);

  // SipHash of the parts, one after the other.
  [[nodiscard]] Digest hash(std::initializer_list<std::span<const std::byte>> parts);

 private:
  struct FreeContext {
    void operator()(evp_mac_ctx_st* context) const;
  };

  Key key_;
  std::unique_ptr<evp_mac_ctx_st, FreeContext> context_;
};

}  // namespace r1d::scheduler
