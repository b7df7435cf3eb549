// SPDX-License-Identifier: Apache-2.0
#include "cli/progress_bar.h"

#include <algorithm>
#include <cstdio>
#include <unistd.h>
#include <utility>

#include <fmt/format.h>

namespace r1d::cli {
namespace {

using std::chrono::steady_clock;

constexpr int kWidth = 40;
constexpr auto kRedrawEvery = std::chrono::milliseconds(100);

}  // namespace

ProgressBar::ProgressBar(std::string label)
    : label_(std::move(label)),
      terminal_(isatty(STDERR_FILENO) == 1),
      start_(steady_clock::now()) {}

ProgressBar::~ProgressBar() {
  if (terminal_) std::fputc('\n', stderr);
}

void ProgressBar::update(double fraction) {
  if (!terminal_) return;
  const auto now = steady_clock::now();
  const bool done = fraction >= 1;
  if (!done && now - drawn_ < kRedrawEvery) return;
  drawn_ = now;
  const double share = std::clamp(fraction, 0.0, 1.0);
  const int filled = static_cast<int>(share * kWidth);
  const double seconds = std::chrono::duration<double>(now - start_).count();
  const double left = share > 0 ? seconds / share - seconds : 0;
  const std::string line = fmt::format("\r{} [{:#<{}}{:.<{}}] {:3.0f} %  {:.0f} s left ",
                                       label_,
                                       "",
                                       filled,
                                       "",
                                       kWidth - filled,
                                       share * 100,
                                       left);
  std::fputs(line.c_str(), stderr);
  std::fflush(stderr);
}

}  // namespace r1d::cli
