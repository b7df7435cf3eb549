// SPDX-License-Identifier: Apache-2.0
#include "scheduler/block_hasher.h"

#include <cstring>

#include <openssl/evp.h>
#include <openssl/rand.h>

#include "r1d/base/check.h"

namespace r1d::scheduler {
namespace {

// The first byte hashed says what follows, so that no salt can be spelled like a block.
constexpr std::byte kRootTag{0};
constexpr std::byte kBlockTag{1};

std::span<const std::byte> bytes_of(const std::byte& byte) {
  return {&byte, 1};
}

const unsigned char* as_uchar(std::span<const std::byte> bytes) {
  return reinterpret_cast<const unsigned char*>(bytes.data());
}

}  // namespace

void BlockHasher::FreeContext::operator()(evp_mac_ctx_st* context) const {
  EVP_MAC_CTX_free(context);
}

BlockHasher::Key BlockHasher::random_key() {
  Key key{};
  R1D_CHECK(RAND_bytes(key.data(), static_cast<int>(key.size())) == 1);
  return key;
}

BlockHasher::BlockHasher(const Key& key) : key_(key) {
  // "-fips": a cache key is no cryptographic service; a host in FIPS mode would hide SipHash.
  EVP_MAC* mac = EVP_MAC_fetch(nullptr, "SIPHASH", "-fips");
  R1D_CHECK(mac != nullptr);
  context_.reset(EVP_MAC_CTX_new(mac));
  EVP_MAC_free(mac);  // the context holds it
  R1D_CHECK(context_ != nullptr);
}

Digest BlockHasher::root(std::string_view salt) {
  return hash({bytes_of(kRootTag), std::as_bytes(std::span(salt))});
}

Digest BlockHasher::block(const Digest& parent, std::span<const TokenId> tokens) {
  return hash({bytes_of(kBlockTag), std::as_bytes(std::span(&parent, 1)), std::as_bytes(tokens)});
}

Digest BlockHasher::hash(std::initializer_list<std::span<const std::byte>> parts) {
  // NOTE: the key goes in each time; without one, OpenSSL 3.0 goes on from the last hash's state.
  // The defaults are 2 and 4 rounds and 16 bytes out.
  R1D_CHECK(EVP_MAC_init(context_.get(), key_.data(), key_.size(), nullptr) == 1);
  for (const std::span<const std::byte> part : parts) {
    R1D_CHECK(EVP_MAC_update(context_.get(), as_uchar(part), part.size()) == 1);
  }
  std::array<unsigned char, sizeof(Digest)> out{};
  size_t out_bytes = 0;
  R1D_CHECK(EVP_MAC_final(context_.get(), out.data(), &out_bytes, out.size()) == 1);
  R1D_CHECK(out_bytes == out.size());
  Digest digest;
  std::memcpy(&digest, out.data(), out.size());
  return digest;
}

}  // namespace r1d::scheduler
