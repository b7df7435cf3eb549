// SPDX-License-Identifier: Apache-2.0
#include "bench/dnnl_matmul.h"

#ifdef R1D_HAVE_DNNL
#include <algorithm>
#include <memory>
#include <unordered_map>
#include <vector>

#include <oneapi/dnnl/dnnl.hpp>

namespace r1d::bench {
namespace {

using dnnl::memory;

struct Call {
  dnnl::stream stream;
  dnnl::matmul matmul;
  std::unordered_map<int, memory> args;
};

memory filled(const memory::desc& desc, const dnnl::engine& engine, dnnl::stream& stream) {
  const memory::dims dims = desc.dims();
  const memory plain({dims, memory::data_type::f32, memory::format_tag::ab}, engine);
  auto* values = static_cast<float*>(plain.get_data_handle());
  std::fill_n(values, dims[0] * dims[1], 0.5F);
  memory result(desc, engine);
  dnnl::reorder(plain, result).execute(stream, {{DNNL_ARG_FROM, plain}, {DNNL_ARG_TO, result}});
  stream.wait();
  return result;
}

dnnl::matmul::primitive_desc matmul_desc(const dnnl::engine& engine,
                                         const memory::desc& x,
                                         const memory::desc& w,
                                         const memory::desc& y) {
#if DNNL_VERSION_MAJOR >= 3
  return {engine, x, w, y};
#else
  return {dnnl::matmul::desc(x, w, y), engine};
#endif
}

}  // namespace

std::string dnnl_description() {
  const dnnl_version_t* v = dnnl_version();
  return "oneDNN " + std::to_string(v->major) + '.' + std::to_string(v->minor) + '.' +
         std::to_string(v->patch);
}

std::function<void()> dnnl_matmul(bool bf16, int64_t tokens, int64_t rows, int64_t cols) {
  try {
    const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
    dnnl::stream stream(engine);
    const auto type = bf16 ? memory::data_type::bf16 : memory::data_type::f32;
    using Tag = memory::format_tag;
    const auto desc = matmul_desc(engine,
                                  {{tokens, cols}, type, Tag::ab},
                                  {{cols, rows}, type, Tag::any},
                                  {{tokens, rows}, memory::data_type::f32, Tag::ab});
    auto call = std::make_shared<Call>(Call{stream, dnnl::matmul(desc), {}});
    call->args = {{DNNL_ARG_SRC, filled(desc.src_desc(), engine, stream)},
                  {DNNL_ARG_WEIGHTS, filled(desc.weights_desc(), engine, stream)},
                  {DNNL_ARG_DST, memory(desc.dst_desc(), engine)}};
    return [call] {
      call->matmul.execute(call->stream, call->args);
      call->stream.wait();
    };
  } catch (const dnnl::error&) {
    return {};
  }
}

}  // namespace r1d::bench
#else
namespace r1d::bench {

std::string dnnl_description() {
  return {};
}

std::function<void()> dnnl_matmul(bool /*bf16*/,
                                  int64_t /*tokens*/,
                                  int64_t /*rows*/,
                                  int64_t /*cols*/) {
  return {};
}

}  // namespace r1d::bench
#endif  // R1D_HAVE_DNNL
