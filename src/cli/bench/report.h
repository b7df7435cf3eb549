// SPDX-License-Identifier: Apache-2.0
// Results for people: a table for the terminal, a page with charts.
#pragma once

#include <span>
#include <string>

#include "cli/bench/result.h"

namespace r1d::cli::bench {

// One run.
[[nodiscard]] std::string render_table(const Result& result);

// Several side by side, the first being what the others are compared with.
[[nodiscard]] std::string render_comparison(std::span<const Result> results);

// A page of one or more runs that needs nothing but itself: styles and SVG inside, no script, no
// reference to another place. Also well-formed as XML.
[[nodiscard]] std::string render_html(std::span<const Result> results);

}  // namespace r1d::cli::bench
