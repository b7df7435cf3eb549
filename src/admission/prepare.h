// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "r1d/admission/text_model.h"

namespace r1d::admission {

// TextModel::encode whose errors name the field.
[[nodiscard]] absl::StatusOr<TextModel::Prompt> encode_text(const std::string& text,
                                                            bool plain,
                                                            const TextModel& model);

}  // namespace r1d::admission
