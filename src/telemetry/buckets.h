// SPDX-License-Identifier: Apache-2.0
// Histogram bounds. Each list reaches past the slowest answer expected: a reasoning run lasts
// minutes, a CPU prefill too. The first lists are those of r1d_*; they hold every bound of the
// vllm_* lists below, so that a histogram can be shown in both (dialects.cc).
#pragma once

#include <cstdint>

#include "telemetry/registry.h"

namespace r1d::telemetry {

// One gap between tokens, seconds: fine from 1 ms, since a decode step of R1 on eight GPUs takes 2
// to 40 ms.
[[nodiscard]] inline Buckets token_gap_buckets() {
  return {.001, .002, .003, .004, .006, .008, .01, .0125, .015, .02, .025,
          .03,  .035, .04,  .05,  .06,  .075, .1,  .15,   .2,   .3,  .4,
          .5,   .75,  1,    2.5,  5,    7.5,  10,  20,    40,   80,  120};
}

// Time to first token, seconds: a warm short prompt to an hour in a full queue.
[[nodiscard]] inline Buckets first_token_buckets() {
  return {.001, .005, .01, .02, .04, .06, .08, .1,  .15, .25, .5,   .75,  1,   1.5,
          2.5,  5,    7.5, 10,  20,  40,  80,  160, 320, 640, 1280, 2560, 3600};
}

// A request and its phases, seconds: up to twice the default server.max_request_time of an hour.
[[nodiscard]] inline Buckets request_buckets() {
  return {.001, .005, .01, .02, .05, .1, .2, .3, .5,  .8,  1,   1.5, 2,    2.5,  5,
          10,   15,   20,  30,  40,  50, 60, 90, 120, 240, 480, 960, 1920, 3600, 7680};
}

// A step, seconds: a small decode batch on a GPU to a 32768-token prefill on a CPU.
[[nodiscard]] inline Buckets step_buckets() {
  return {.0005, .001, .002, .004, .006, .008, .01, .015, .02, .03, .04, .06, .08,
          .1,    .2,   .4,   .8,   1.5,  3,    6,   12,   30,  60,  120, 300};
}

// Tokens of a prompt or an output; R1's longest context is 163840. vLLM's list is the same, up to
// the longest context.
[[nodiscard]] inline Buckets token_count_buckets() {
  return {
      1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000, 200000};
}

// Sequences of one request; n is bounded by admission.
[[nodiscard]] inline Buckets sequence_count_buckets() {
  return {1, 2, 5, 10, 20};
}

// Mean log-probability of a token, natural: -7 is one in a thousand, -0.01 is 99 %.
[[nodiscard]] inline Buckets logprob_buckets() {
  return {-7,  -5,  -4,  -3,   -2.5, -2,   -1.5, -1.25, -1,    -.8,   -.6, -.5,
          -.4, -.3, -.2, -.15, -.1,  -.05, -.02, -.01,  -.005, -.001, 0};
}

// 1, 2, 4, ... largest.
[[nodiscard]] inline Buckets powers_of_two(int32_t largest) {
  Buckets bounds;
  for (int64_t bound = 1; bound <= largest; bound *= 2)
    bounds.push_back(static_cast<double>(bound));
  return bounds;
}

// vLLM's own lists.
[[nodiscard]] inline Buckets vllm_token_gap_buckets() {
  return {.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80};
}
[[nodiscard]] inline Buckets vllm_first_token_buckets() {
  return {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
          1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 2560};
}
[[nodiscard]] inline Buckets vllm_request_buckets() {
  return {.3, .5, .8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
          30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};
}
[[nodiscard]] inline Buckets vllm_step_token_buckets() {
  return {1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384};
}

}  // namespace r1d::telemetry
