// SPDX-License-Identifier: Apache-2.0
#include "r1d/device/nccl_info.h"

#include <algorithm>
#include <string_view>
#include <unistd.h>

#include "r1d/base/status.h"

namespace r1d::device {
namespace {

// Variables of others that change what NCCL does.
constexpr std::string_view kOthers[] = {"CUDA_VISIBLE_DEVICES", "CUDA_MODULE_LOADING"};

bool concerns_nccl(std::string_view name) {
  return name.substr(0, 5) == "NCCL_" ||
         std::find(std::begin(kOthers), std::end(kOthers), name) != std::end(kOthers);
}

}  // namespace

std::vector<std::pair<std::string, std::string>> nccl_settings() {
  std::vector<std::pair<std::string, std::string>> settings;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string_view text(*entry);
    const size_t equals = text.find('=');
    if (equals == std::string_view::npos || !concerns_nccl(text.substr(0, equals))) continue;
    settings.emplace_back(text.substr(0, equals), text.substr(equals + 1));
  }
  std::sort(settings.begin(), settings.end());
  return settings;
}

#ifndef R1D_HAVE_NCCL
absl::StatusOr<std::string> nccl_version() {
  return failed_precondition("this binary was built without NCCL");
}
#endif

}  // namespace r1d::device
