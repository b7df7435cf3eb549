// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace r1d::cli {

// Runs one subcommand: serve, generate, inspect, golden, version. Returns the process's exit
// status: 0 done, 1 failed (one line on standard error says why), 2 wrong usage.
int run(int argc, char** argv);

}  // namespace r1d::cli
