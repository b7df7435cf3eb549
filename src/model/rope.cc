// SPDX-License-Identifier: Apache-2.0
#include "model/rope.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>

namespace r1d::model {
namespace {

double magnitude(double factor, double mscale) {
  return factor <= 1 ? 1 : 0.1 * mscale * std::log(factor) + 1;
}

// The pair index whose wavelength makes `rotations` turns over the original context.
double pair_of_rotations(double rotations, double dim, const checkpoint::ModelConfig& config) {
  const auto original = static_cast<double>(config.yarn->original_max_position_embeddings);
  return dim * std::log(original / (rotations * 2 * std::numbers::pi)) /
         (2 * std::log(config.rope_theta));
}

// Pairs below `low` keep their frequency, pairs above `high` are divided by the factor, a linear
// ramp lies between.
void interpolate(const checkpoint::ModelConfig& config, std::vector<float>& inv_freq) {
  const checkpoint::YarnConfig& yarn = *config.yarn;
  const auto dim = static_cast<double>(config.qk_rope_head_dim);
  const double low = std::max(std::floor(pair_of_rotations(yarn.beta_fast, dim, config)), 0.0);
  // The clamp is dim - 1, not dim / 2 - 1: what the reference does.
  double high = std::min(std::ceil(pair_of_rotations(yarn.beta_slow, dim, config)), dim - 1);
  if (low == high) high += 0.001;
  for (size_t j = 0; j < inv_freq.size(); ++j) {
    const double ramp = std::clamp((static_cast<double>(j) - low) / (high - low), 0.0, 1.0);
    const double plain = inv_freq[j];
    inv_freq[j] = static_cast<float>(plain / yarn.factor * ramp + plain * (1 - ramp));
  }
}

}  // namespace

RopeConstants make_rope_constants(const checkpoint::ModelConfig& config) {
  RopeConstants rope;
  const int64_t dim = config.qk_rope_head_dim;
  for (int64_t j = 0; j < dim / 2; ++j) {
    const double exponent = -2.0 * static_cast<double>(j) / static_cast<double>(dim);
    rope.inv_freq.push_back(static_cast<float>(std::pow(config.rope_theta, exponent)));
  }
  double scale = 1 / std::sqrt(static_cast<double>(config.qk_head_dim()));
  if (config.yarn) {
    interpolate(config, rope.inv_freq);
    const double factor = config.yarn->factor;
    // mscale_all_dim 0 (or absent): magnitude is 1, and cos/sin carry the whole correction.
    const double all_dim =
        config.yarn->mscale_all_dim == 0 ? 1 : magnitude(factor, config.yarn->mscale_all_dim);
    scale *= all_dim * all_dim;
    rope.cos_sin_scale = static_cast<float>(magnitude(factor, config.yarn->mscale) / all_dim);
  }
  rope.softmax_scale = static_cast<float>(scale);
  return rope;
}

}  // namespace r1d::model
