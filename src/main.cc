// SPDX-License-Identifier: Apache-2.0
#include <cstdio>
#include <exception>

#include "r1d/cli/cli.h"

int main(int argc, char** argv) {
  try {
    return r1d::cli::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "r1d: %s\n", error.what());
    return 1;
  }
}
