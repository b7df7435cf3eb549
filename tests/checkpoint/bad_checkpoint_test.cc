// SPDX-License-Identifier: Apache-2.0
// What open_hugging_face() refuses, and with which words.
#include <filesystem>
#include <functional>
#include <string>
#include <sys/stat.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "r1d/base/status.h"
#include "r1d/checkpoint/weight_source.h"

#include "tests/support/checkpoint_writer.h"

namespace r1d::checkpoint {
namespace {

using test::Json;
using test::TempDir;
using test::TestCheckpoint;

constexpr const char* kIndex = "model.safetensors.index.json";
constexpr const char* kShard1 = "model-00001-of-000002.safetensors";
constexpr const char* kShard2 = "model-00002-of-000002.safetensors";
constexpr const char* kGate = "model.layers.1.mlp.gate.weight";
constexpr const char* kExpert = "model.layers.1.mlp.experts.3.down_proj.weight";
constexpr const char* kExpertScale = "model.layers.1.mlp.experts.3.down_proj.weight_scale_inv";

struct BadCheckpoint {
  const char* name;
  std::function<void(TestCheckpoint&)> corrupt;
  std::string message;
};
std::string name_of(const testing::TestParamInfo<BadCheckpoint>& info) {
  return info.param.name;
}
void PrintTo(const BadCheckpoint& bad, std::ostream* out) {
  *out << bad.name;
}

class BadCheckpointTest : public testing::TestWithParam<BadCheckpoint> {};

TEST_P(BadCheckpointTest, IsRefusedByFileAndTensor) {
  TestCheckpoint checkpoint = test::make_checkpoint(test::small_config(true), true, 2);
  GetParam().corrupt(checkpoint);
  const auto source = test::open(checkpoint);
  ASSERT_FALSE(source.ok());
  EXPECT_EQ(source.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(message_of(source.status()), testing::HasSubstr(GetParam().message));
}

std::string in(const char* file, const std::string& text) {
  return std::string(file) + ": " + text;
}

const BadCheckpoint kBadCheckpoints[] = {
    // Tensors against the model.
    {"MissingTensor",
     [](TestCheckpoint& c) { c.remove("model.norm.weight"); },
     in(kIndex, "tensor model.norm.weight [160] is missing")},
    {"SeveralMissing",
     [](TestCheckpoint& c) {
       c.remove("model.embed_tokens.weight");
       c.remove("model.norm.weight");
       c.remove(kGate);
     },
     in(kIndex, "tensor model.embed_tokens.weight [64, 160] is missing (and 2 more)")},
    {"MissingRouterBias",
     [](TestCheckpoint& c) { c.remove("model.layers.1.mlp.gate.e_score_correction_bias"); },
     in(kIndex, "tensor model.layers.1.mlp.gate.e_score_correction_bias [4] is missing")},
    {"HalfAnMtpLayer",
     [](TestCheckpoint& c) { c.remove("model.layers.2.eh_proj.weight"); },
     in(kIndex, "tensor model.layers.2.eh_proj.weight [160, 320] is missing")},
    {"MtpWithoutItsHeadNorm",
     [](TestCheckpoint& c) { c.remove("model.layers.2.shared_head.norm.weight"); },
     in(kIndex, "tensor model.layers.2.shared_head.norm.weight [160] is missing")},
    {"MtpThatTheConfigDoesNotHave",
     [](TestCheckpoint& c) { c.config["num_nextn_predict_layers"] = 0; },
     "tensor model.layers.2.eh_proj.weight is not part of the model that config.json describes"},
    {"ExtraTensor",
     [](TestCheckpoint& c) {
       c.add(kShard1, "model.layers.0.self_attn.q_a_proj.bias", {"BF16", {2}, "1234"});
     },
     in(kShard1,
        "tensor model.layers.0.self_attn.q_a_proj.bias is not part of the model that "
        "config.json describes")},
    {"SeveralExtra",
     [](TestCheckpoint& c) {
       c.add(kShard1, "b", {"I64", {0}, ""});
       c.add(kShard2, "a", {"BOOL", {0}, ""});
     },
     in(kShard2, "tensor a is not part of the model that config.json describes (and 1 more)")},
    {"ExtraTensorWithAHostileName",
     [](TestCheckpoint& c) {
       c.add(kShard1, "\x1B[31m\n", {"BOOL", {0}, ""});
     },
     in(kShard1, "tensor ?[31m? is not part of the model")},
    {"HeadOfATiedModel",
     [](TestCheckpoint& c) { c.config["tie_word_embeddings"] = true; },
     "tensor lm_head.weight is not part of the model that config.json describes"},
    {"MoreLayersThanTheConfigSays",
     [](TestCheckpoint& c) {
       c.config["num_hidden_layers"] = 1;
       c.config["num_nextn_predict_layers"] = 0;
     },
     "is not part of the model that config.json describes"},
    {"WrongRows",
     [](TestCheckpoint& c) {
       test::reshape(c.tensor(kGate), {5, 160}, 2);
     },
     "tensor model.layers.1.mlp.gate.weight has shape [5, 160], expected [4, 160]"},
    {"Transposed",
     [](TestCheckpoint& c) {
       test::reshape(c.tensor(kGate), {160, 4}, 2);
     },
     "tensor model.layers.1.mlp.gate.weight has shape [160, 4], expected [4, 160]"},
    {"VectorAsMatrix",
     [](TestCheckpoint& c) {
       test::reshape(c.tensor("model.norm.weight"), {160, 1}, 2);
     },
     "tensor model.norm.weight has shape [160, 1], expected [160]"},
    {"MatrixAsVector",
     [](TestCheckpoint& c) { test::reshape(c.tensor("lm_head.weight"), {64 * 160}, 2); },
     "tensor lm_head.weight has shape [10240], expected [64, 160]"},
    {"HalfPrecision",
     [](TestCheckpoint& c) { c.tensor(kGate).dtype = "F16"; },
     "tensor model.layers.1.mlp.gate.weight has dtype F16, expected BF16 or F32"},
    {"OtherFp8",
     [](TestCheckpoint& c) { c.tensor(kExpert).dtype = "F8_E5M2"; },
     "tensor model.layers.1.mlp.experts.3.down_proj.weight has dtype F8_E5M2, expected F8_E4M3, "
     "BF16 or F32"},
    {"QuantizedRouter",
     [](TestCheckpoint& c) {
       c.tensor(kGate).dtype = "F8_E4M3";
       test::reshape(c.tensor(kGate), {4, 160}, 1);
     },
     "tensor model.layers.1.mlp.gate.weight has dtype F8_E4M3, expected BF16 or F32"},
    // Scales.
    {"MissingScale",
     [](TestCheckpoint& c) { c.remove(kExpertScale); },
     "tensor model.layers.1.mlp.experts.3.down_proj.weight is F8_E4M3, but its scale "
     "model.layers.1.mlp.experts.3.down_proj.weight_scale_inv is missing"},
    {"ScaleWithoutTheRaggedBlock",
     [](TestCheckpoint& c) {
       test::reshape(c.tensor(kExpertScale), {1, 1}, 4);
     },
     "tensor model.layers.1.mlp.experts.3.down_proj.weight_scale_inv has shape [1, 1], expected "
     "[2, 1]"},
    {"ScaleInBf16",
     [](TestCheckpoint& c) {
       test::reshape(c.tensor(kExpertScale), {2, 1}, 2);
       c.tensor(kExpertScale).dtype = "BF16";
     },
     "tensor model.layers.1.mlp.experts.3.down_proj.weight_scale_inv has dtype BF16, expected F32"},
    {"ScaleInE8m0",
     [](TestCheckpoint& c) {
       test::reshape(c.tensor(kExpertScale), {2, 1}, 1);
       c.tensor(kExpertScale).dtype = "F8_E8M0";
     },
     "tensor model.layers.1.mlp.experts.3.down_proj.weight_scale_inv has dtype F8_E8M0, expected "
     "F32"},
    {"ScaleOfABf16Weight",
     [](TestCheckpoint& c) {
       test::reshape(c.tensor(kExpert), {160, 48}, 2);
       c.tensor(kExpert).dtype = "BF16";
     },
     "tensor model.layers.1.mlp.experts.3.down_proj.weight_scale_inv is a scale, but "
     "model.layers.1.mlp.experts.3.down_proj.weight is BF16, not F8_E4M3"},
    {"Fp8WithoutAQuantizationConfig",
     [](TestCheckpoint& c) { c.config.erase("quantization_config"); },
     "is F8_E4M3, but config.json has no quantization_config"},
    // Index against shards.
    {"AbsentShard",
     [](TestCheckpoint& c) { c.shards.erase(kShard2); },
     in(kIndex, std::string("shard ") + kShard2 + " does not exist")},
    {"TensorMappedToTheWrongShard",
     [](TestCheckpoint& c) {
       auto& file = c.index["weight_map"][kGate];
       file = file == kShard1 ? kShard2 : kShard1;
     },
     std::string("tensor model.layers.1.mlp.gate.weight belongs to model-0000")},
    {"TensorNotInTheIndex",
     [](TestCheckpoint& c) { c.index["weight_map"].erase(kGate); },
     "tensor model.layers.1.mlp.gate.weight is not in model.safetensors.index.json"},
    {"TensorNotInItsShard",
     [](TestCheckpoint& c) { c.shards[c.file_of(kGate)].erase(kGate); },
     in(kIndex, "tensor model.layers.1.mlp.gate.weight is not in model-0000")},
    {"PathOutOfTheDirectory",
     [](TestCheckpoint& c) { c.index["weight_map"][kGate] = "../secret.safetensors"; },
     in(kIndex,
        "weight_map: tensor model.layers.1.mlp.gate.weight is mapped to "
        "\"../secret.safetensors\", expected the plain name of a .safetensors file of this "
        "directory")},
    {"AbsolutePath",
     [](TestCheckpoint& c) { c.index["weight_map"][kGate] = "/etc/x.safetensors"; },
     "is mapped to \"/etc/x.safetensors\", expected the plain name"},
    {"Backslashes",
     [](TestCheckpoint& c) { c.index["weight_map"][kGate] = "..\\x.safetensors"; },
     "expected the plain name of a .safetensors file"},
    {"NulInAFileName",
     [](TestCheckpoint& c) { c.index["weight_map"][kGate] = std::string("a\0.safetensors", 14); },
     "expected the plain name of a .safetensors file"},
    {"NoSafetensorsFile",
     [](TestCheckpoint& c) { c.index["weight_map"][kGate] = "config.json"; },
     "is mapped to \"config.json\", expected the plain name"},
    {"FileNameIsANumber",
     [](TestCheckpoint& c) { c.index["weight_map"][kGate] = 7; },
     "is mapped to 7, expected the plain name"},
    {"NoWeightMap",
     [](TestCheckpoint& c) { c.index.erase("weight_map"); },
     in(kIndex, "weight_map: expected an object of tensor names and files")},
    {"WeightMapIsAList",
     [](TestCheckpoint& c) { c.index["weight_map"] = Json::array({1}); },
     in(kIndex, "weight_map: expected an object of tensor names and files")},
    {"IndexIsAList",
     [](TestCheckpoint& c) { c.index = Json::array({1}); },
     in(kIndex, "weight_map: expected an object of tensor names and files")},
    {"EmptyWeightMap",
     [](TestCheckpoint& c) { c.index["weight_map"] = Json::object(); },
     in(kIndex, "weight_map: expected an object of tensor names and files")},
    {"BrokenIndex",
     [](TestCheckpoint& c) { c.file_edits[kIndex] = [](std::string& s) { s.pop_back(); }; },
     in(kIndex, "not JSON: parse error")},
    {"DuplicateKeyInTheIndex",
     [](TestCheckpoint& c) {
       c.file_edits[kIndex] = [](std::string& s) {
         s = R"({"weight_map": {"x": "a.safetensors", "x": "b.safetensors"}})";
       };
     },
     in(kIndex, "JSON has key \"x\" twice")},
    // Shards as files.
    {"TruncatedShard",
     [](TestCheckpoint& c) {
       c.file_edits[kShard2] = [](std::string& s) { s.resize(s.size() - 100); };
     },
     ": the file is truncated"},
    {"ShardCutInItsHeader",
     [](TestCheckpoint& c) { c.file_edits[kShard2] = [](std::string& s) { s.resize(64); }; },
     "is more than the 56 bytes that follow it"},
    {"EmptyShard",
     [](TestCheckpoint& c) { c.file_edits[kShard2] = [](std::string& s) { s.clear(); }; },
     in(kShard2, "is 0 bytes long, too short for a safetensors file")},
    {"OverlapInAShard",
     [](TestCheckpoint& c) {
       c.header_edits[kShard1] = [](Json& header) {
         header["z"] = {{"dtype", "U8"}, {"shape", {4}}, {"data_offsets", {0, 4}}};
       };
     },
     in(kShard1, "tensor ")},
    {"BrokenConfig",
     [](TestCheckpoint& c) { c.file_edits["config.json"] = [](std::string& s) { s = "{"; }; },
     "/config.json: not JSON: parse error"},
    {"ConfigField",
     [](TestCheckpoint& c) { c.config["hidden_size"] = 0; },
     "/config.json: hidden_size: expected an integer from 1 to 131072, found 0"},
};
INSTANTIATE_TEST_SUITE_P(AllFaults, BadCheckpointTest, testing::ValuesIn(kBadCheckpoints), name_of);

TEST(BadDirectoryTest, NamesAMissingTensorOfASingleFile) {
  TestCheckpoint checkpoint = test::make_checkpoint(test::small_config(false), false, 0);
  checkpoint.remove("lm_head.weight");
  EXPECT_EQ(message_of(test::open(checkpoint).status()),
            "model.safetensors: tensor lm_head.weight [64, 160] is missing");
}

TEST(BadDirectoryTest, RefusesADirectoryWithoutWeights) {
  const TempDir dir;
  dir.write("config.json", test::small_config(false).dump());
  const auto source = open_hugging_face(dir.path());
  EXPECT_EQ(source.status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(message_of(source.status()),
            dir.path() + ": has neither model.safetensors.index.json nor model.safetensors");
}

TEST(BadDirectoryTest, RefusesADirectoryWithoutConfig) {
  const TempDir dir;
  EXPECT_EQ(message_of(open_hugging_face(dir.path()).status()),
            dir.path() + "/config.json: No such file or directory");
}

TEST(BadDirectoryTest, DoesNotHangOnAFifoInPlaceOfAShard) {
  const TempDir dir;
  TestCheckpoint checkpoint = test::make_checkpoint(test::small_config(false), false, 2);
  checkpoint.write(dir);
  const std::string shard = dir.path() + "/" + kShard2;
  std::filesystem::remove(shard);
  ASSERT_EQ(::mkfifo(shard.c_str(), 0600), 0);
  EXPECT_EQ(message_of(open_hugging_face(dir.path()).status()),
            in(kShard2, "is not a regular file"));
}

}  // namespace
}  // namespace r1d::checkpoint
