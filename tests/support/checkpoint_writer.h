// SPDX-License-Identifier: Apache-2.0
// Small checkpoints for tests: made in memory with seeded weights, bent by the test, then written.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <unistd.h>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "r1d/base/check.h"
#include "r1d/checkpoint/model_config.h"
#include "r1d/checkpoint/weight_source.h"

namespace r1d::test {

using Json = nlohmann::json;

// A fresh directory, removed with all that is in it.
class TempDir {
 public:
  TempDir() {
    std::string pattern = (std::filesystem::temp_directory_path() / "r1d-test-XXXXXX").string();
    R1D_CHECK(::mkdtemp(pattern.data()) != nullptr);
    path_ = pattern;
  }
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  [[nodiscard]] const std::string& path() const { return path_; }

  void write(const std::string& name, std::string_view content) const {
    std::ofstream file(path_ + "/" + name, std::ios::binary);
    file.write(content.data(), static_cast<std::streamsize>(content.size()));
    R1D_CHECK(file.good());
  }

 private:
  std::string path_;
};

// DeepSeek-V3 with every kind of tensor in about 200 kB: one dense and one MoE layer, and one MTP
// layer that make_checkpoint() may leave out.
inline Json small_config(bool fp8) {
  Json config = Json::parse(R"({
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3",
    "vocab_size": 64, "hidden_size": 160, "intermediate_size": 192, "moe_intermediate_size": 48,
    "num_hidden_layers": 2, "num_nextn_predict_layers": 1, "first_k_dense_replace": 1,
    "moe_layer_freq": 1, "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 32,
    "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
    "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 2,
    "topk_group": 1, "norm_topk_prob": true, "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid", "topk_method": "noaux_tc", "hidden_act": "silu",
    "rms_norm_eps": 1e-6, "rope_theta": 10000, "max_position_embeddings": 163840,
    "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096,
      "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0},
    "tie_word_embeddings": false, "attention_bias": false, "torch_dtype": "bfloat16",
    "bos_token_id": 0, "eos_token_id": 1})");
  if (fp8) {
    config["quantization_config"] = {{"quant_method", "fp8"},
                                     {"fmt", "e4m3"},
                                     {"activation_scheme", "dynamic"},
                                     {"weight_block_size", {128, 128}}};
  }
  return config;
}

struct TensorData {
  std::string dtype;
  std::vector<int64_t> shape;
  std::string bytes;
};
using TensorMap = std::map<std::string, TensorData>;

// The bytes of a safetensors file; `edit` may change the header before it is written.
inline std::string serialize(const TensorMap& tensors,
                             const std::function<void(Json&)>& edit = nullptr) {
  Json header = {{"__metadata__", {{"format", "pt"}}}};
  std::string data;
  for (const auto& [name, tensor] : tensors) {
    header[name] = {{"dtype", tensor.dtype},
                    {"shape", tensor.shape},
                    {"data_offsets", {data.size(), data.size() + tensor.bytes.size()}}};
    data += tensor.bytes;
  }
  if (edit) edit(header);
  std::string json = header.dump();
  json.resize((json.size() + 7) / 8 * 8, ' ');
  std::string file;
  for (int shift = 0; shift < 64; shift += 8) file += static_cast<char>(json.size() >> shift);
  return file + json + data;
}

// Gives `tensor` another shape and as many bytes as that needs.
inline void reshape(TensorData& tensor, std::vector<int64_t> shape, size_t bytes_each) {
  size_t count = 1;
  for (const int64_t size : shape) count *= static_cast<size_t>(size);
  tensor.shape = std::move(shape);
  tensor.bytes.assign(count * bytes_each, '\0');
}

// What write() puts into a directory. Every part may be changed before.
struct TestCheckpoint {
  Json config;
  std::map<std::string, TensorMap> shards;                              // by file name
  Json index;                                                           // null: none is written
  std::map<std::string, std::function<void(Json&)>> header_edits;       // by file name
  std::map<std::string, std::function<void(std::string&)>> file_edits;  // any file, as a last step

  // The shard that holds `tensor`.
  [[nodiscard]] std::string file_of(const std::string& tensor) const {
    for (const auto& [file, tensors] : shards) {
      if (tensors.contains(tensor)) return file;
    }
    R1D_CHECK(false && "no such tensor in the test checkpoint");
    return "";
  }
  [[nodiscard]] TensorData& tensor(const std::string& name) { return shards[file_of(name)][name]; }

  // Adds to, or takes from, both shard and index.
  void add(const std::string& file, const std::string& name, TensorData data) {
    shards[file][name] = std::move(data);
    if (!index.is_null()) index["weight_map"][name] = file;
  }
  void remove(const std::string& name) {
    shards[file_of(name)].erase(name);
    if (!index.is_null()) index["weight_map"].erase(name);
  }

  void write(const TempDir& dir) const {
    std::map<std::string, std::string> files = {{"config.json", config.dump(2)}};
    if (!index.is_null()) files["model.safetensors.index.json"] = index.dump();
    for (const auto& [name, tensors] : shards) {
      const auto edit = header_edits.find(name);
      files[name] = serialize(tensors, edit == header_edits.end() ? nullptr : edit->second);
    }
    for (const auto& [name, edit] : file_edits) edit(files[name]);
    for (const auto& [name, content] : files) dir.write(name, content);
  }
};

// Writes it to a folder that does not outlive the call, and opens it: mapped files stay readable.
inline absl::StatusOr<std::unique_ptr<checkpoint::WeightSource>> open(
    const TestCheckpoint& checkpoint) {
  const TempDir dir;
  checkpoint.write(dir);
  return checkpoint::open_hugging_face(dir.path());
}

// Names of what is in a folder.
inline std::set<std::string> files_in(const std::string& dir) {
  std::set<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(dir)) {
    names.insert(entry.path().filename());
  }
  return names;
}

inline TensorData read_whole(const checkpoint::WeightSource& source,
                             const std::string& name,
                             bool rank_1) {
  const checkpoint::StoredTensor stored = source.find(name).value();
  TensorData data;
  data.dtype = dtype_name(stored.dtype);
  data.shape = rank_1 ? std::vector{stored.rows} : std::vector{stored.rows, stored.cols};
  const int64_t bytes = stored.rows * stored.cols * dtype_bytes(stored.dtype);
  data.bytes.resize(static_cast<size_t>(bytes));
  const absl::Status status = source.read(name,
                                          {.rows = {0, stored.rows}, .cols = {0, stored.cols}},
                                          std::as_writable_bytes(std::span(data.bytes)));
  R1D_CHECK(status.ok());
  return data;
}

// Seeded weights for `config`, dealt out to `num_shards` files with an index; 0: one
// model.safetensors without.
inline TestCheckpoint make_checkpoint(const Json& config, bool with_mtp, int num_shards) {
  const auto parsed = checkpoint::ModelConfig::parse(config.dump());
  R1D_CHECK(parsed.ok());
  const auto source = checkpoint::make_dummy_source(*parsed, 1);
  TestCheckpoint made;
  made.config = config;
  if (num_shards > 0)
    made.index = {{"metadata", {{"total_size", 0}}}, {"weight_map", Json::object()}};
  int next = 0;
  const auto next_file = [&] {
    if (num_shards == 0) return std::string("model.safetensors");
    return fmt::format("model-{:05}-of-{:06}.safetensors", next++ % num_shards + 1, num_shards);
  };
  for (const auto& spec : checkpoint::expected_tensors(*parsed, with_mtp)) {
    made.add(next_file(), spec.name, read_whole(*source, spec.name, spec.rank_1));
    const std::string scale = checkpoint::scale_name(spec.name);
    if (source->find(scale).ok()) made.add(next_file(), scale, read_whole(*source, scale, false));
  }
  return made;
}

}  // namespace r1d::test
