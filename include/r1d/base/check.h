// SPDX-License-Identifier: Apache-2.0
// R1D_CHECK states an invariant of ours and holds in every build. It never judges input, files or
// the network: those yield a Status. A failed check prints the text and aborts.
#pragma once

namespace r1d::base {

[[noreturn]] void check_failed(const char* file, int line, const char* condition);

}  // namespace r1d::base

#define R1D_CHECK(condition)                                     \
  do {                                                           \
    if (!(condition)) [[unlikely]]                               \
      ::r1d::base::check_failed(__FILE__, __LINE__, #condition); \
  } while (false)

// For hot loops: checked unless NDEBUG is set.
#ifdef NDEBUG
#define R1D_DCHECK(condition) static_cast<void>(sizeof(condition))
#else
#define R1D_DCHECK(condition) R1D_CHECK(condition)
#endif
