// Loading a checkpoint: config.json's refusals, and damaged copies of the committed model, each of
// which must say what is wrong with what.
//
// SPDX-License-Identifier: Apache-2.0
#include "worker/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "tests/worker/checkpoint_files.h"
#include "tests/worker/files.h"
#include "tests/worker/llama_reference.h"
#include "tests/worker/support.h"
#include "worker/model_config.h"

namespace kvpool {
namespace {

using testing::AllOf;
using testing::HasSubstr;

std::string Replace(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

std::string Committed(const std::string& name) {
  return ReadTextFile(kModelDirectory + "/" + name).value();
}

TEST(LlamaConfigTest, ReadsTheCommittedModel) {
  const absl::StatusOr<LlamaConfig> config = ReadLlamaConfig(kModelDirectory);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->hidden, 256u);
  EXPECT_EQ(config->query_heads, 8u);
  EXPECT_EQ(config->kv_heads, 4u);
  EXPECT_EQ(config->head_dim, 32u);
  EXPECT_TRUE(config->tied_embeddings);
  EXPECT_EQ(config->eos, std::vector<int32_t>{2});
  const Geometry geometry = config->CacheGeometry(Dtype::kBf16);
  EXPECT_TRUE(CheckGeometry(geometry).ok());
  EXPECT_EQ(geometry.layers, 6u);
  EXPECT_EQ(geometry.kv_of_layer, (std::vector<uint16_t>{0, 1, 2, 3, 4, 5}));
}

TEST(LlamaConfigTest, DefaultsOfTransformers) {
  const auto config = ParseLlamaConfig(
      R"({"hidden_size":64,"intermediate_size":128,"num_hidden_layers":2,
          "num_attention_heads":4,"vocab_size":100,"eos_token_id":[2,7]})");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->kv_heads, 4u);
  EXPECT_EQ(config->head_dim, 16u);
  EXPECT_EQ(config->rope_theta, 10000);
  EXPECT_FLOAT_EQ(config->norm_eps, 1e-6f);
  EXPECT_FALSE(config->tied_embeddings);
  EXPECT_EQ(config->eos, (std::vector<int32_t>{2, 7}));
}

TEST(LlamaConfigTest, RefusesWhatItDoesNotImplementByName) {
  const std::string good = Committed("config.json");
  const struct {
    const char *from, *to;
    std::vector<const char*> parts;
  } cases[] = {
      {"LlamaForCausalLM", "GPT2LMHeadModel", {"architectures", "GPT2LMHeadModel", "Llama"}},
      {"\"llama\"", "\"mixtral\"", {"model_type", "mixtral"}},
      {"\"silu\"", "\"gelu\"", {"hidden_act", "gelu", "silu"}},
      {"\"attention_bias\": false", "\"attention_bias\": true", {"attention_bias"}},
      {"\"mlp_bias\": false", "\"mlp_bias\": true", {"mlp_bias"}},
      {"\"rope_scaling\": null", "\"rope_scaling\": {\"factor\": 8}", {"rope_scaling", "factor"}},
      {"\"use_cache\"", "\"sliding_window\": 4096, \"use_cache\"", {"sliding_window", "4096"}},
      {"\"use_cache\"", "\"quantization_config\": {}, \"use_cache\"", {"quantization_config"}},
      {"\"hidden_size\": 256", "\"hidden_size\": -1", {"hidden_size", "-1"}},
      {"\"hidden_size\": 256", "\"hidden_size\": 1e9", {"hidden_size"}},
      {"\"hidden_size\": 256,", "", {"hidden_size", "missing"}},
      {"\"num_hidden_layers\": 6", "\"num_hidden_layers\": 257", {"num_hidden_layers", "256"}},
      {"\"num_key_value_heads\": 4", "\"num_key_value_heads\": 3", {"num_key_value_heads"}},
      {"\"head_dim\": 32", "\"head_dim\": 33", {"head_dim", "even"}},
      {"\"head_dim\": 32", "\"head_dim\": \"32\"", {"head_dim"}},
      {"1e-05", "0", {"rms_norm_eps"}},
      {"10000.0", "\"x\"", {"rope_theta"}},
      {"\"eos_token_id\": 2", "\"eos_token_id\": 4096", {"eos_token_id", "4096"}},
      {"\"tie_word_embeddings\": true", "\"tie_word_embeddings\": 1", {"tie_word_embeddings"}},
      {"{", "[", {"not JSON"}},
  };
  for (const auto& c : cases) {
    const auto config = ParseLlamaConfig(Replace(good, c.from, c.to));
    ASSERT_FALSE(config.ok()) << c.to;
    for (const char* part : c.parts) {
      EXPECT_THAT(std::string(config.status().message()), HasSubstr(part));
    }
  }
  EXPECT_FALSE(ParseLlamaConfig("[]").ok());
  EXPECT_FALSE(ParseLlamaConfig("").ok());
}

boost::json::object WithLayerTypes(const boost::json::value& types) {
  boost::json::object config = boost::json::parse(Committed("config.json")).as_object();
  config["layer_types"] = types;
  return config;
}

TEST(LayerTypesTest, WhoComputesAndWhoSharesWhat) {
  const struct {
    const char* text;
    std::vector<uint16_t> cached;
    uint32_t layers, first, end;  // cached layers; the cyclic ones
  } cases[] = {
      {"0_4_4_4_4_5", {0, 1, 1, 1, 1, 2}, 3, 1, 5},  // LCKV, w = 2
      {"0_1_4_4_4_5", {0, 1, 2, 2, 2, 3}, 4, 2, 5},  // w = 3
      {"0_3_3_3_3_5", {0, 1, 1, 1, 1, 2}, 3, 1, 4},  // the shared layer in the middle
      {"0_0_2_2_4_4", {0, 0, 1, 1, 2, 2}, 3, 0, 0},  // CLA
      {"0_1_2_3_3_3", {0, 1, 2, 3, 3, 3}, 4, 0, 0},  // YOCO
      {"0_1_2_3_4_5", {0, 1, 2, 3, 4, 5}, 6, 0, 0},  // each its own
  };
  for (const auto& c : cases) {
    const auto config = ParseLlamaConfig(boost::json::serialize(WithLayerTypes(c.text)));
    ASSERT_TRUE(config.ok()) << config.status();
    const Geometry geometry = config->CacheGeometry(Dtype::kBf16);
    EXPECT_TRUE(CheckGeometry(geometry).ok());
    EXPECT_EQ(geometry.kv_of_layer, c.cached);
    EXPECT_EQ(geometry.layers, c.layers);
    EXPECT_EQ(config->layer_types.Cyclic().first, c.first);
    EXPECT_EQ(config->layer_types.Cyclic().end, c.end);
    EXPECT_EQ(config->prompt_passes(), 9u);
  }
}

TEST(LayerTypesTest, RefusesEachMalformedEntryByNumber) {
  const struct {
    boost::json::value types;
    const char* part;
  } cases[] = {
      {"0_4_4_4_4_6", "entry 5 names layer 6; there are 6"},
      {"0_4_4_4_4_99999", "entry 5 names layer 99999"},
      {"0_3_4_4_4_5",
       "entry 1 names layer 3, which has no keys and values: it uses those of layer 4"},
      {"1_0_2_3_4_5", "entry 0 names layer 1, which has no keys"},
      {"0_1s_2_3_4_5", "entry 1 is \"1s\", a layer with a sliding window; those are not supported"},
      {"0_x_2_3_4_5", "entry 1 is \"x\", not a layer's number"},
      {"0_-1_2_3_4_5", "entry 1 is \"-1\""},
      {"0_+1_2_3_4_5", "entry 1 is \"+1\""},
      {"0_1 _2_3_4_5", "entry 1 is \"1 \""},
      {"0__2_3_4_5", "entry 1 is \"\""},
      {"0_1_2_3_4_", "entry 5 is \"\""},
      {"", "entry 0 is \"\""},
      {"0_1_2_3_4", "has 5 entries for 6 layers"},
      {"0_1_2_3_4_5_5", "more entries than the 6 layers"},
      {boost::json::array({"full_attention"}), "supported: text such as"},
      {7, "layer_types is 7"},
  };
  for (const auto& c : cases) {
    const auto config = ParseLlamaConfig(boost::json::serialize(WithLayerTypes(c.types)));
    ASSERT_FALSE(config.ok()) << c.part;
    EXPECT_THAT(std::string(config.status().message()),
                AllOf(HasSubstr("config.json: layer_types"), HasSubstr(c.part)));
  }
}

TEST(LayerTypesTest, ReadsHowPromptsAreEncoded) {
  boost::json::object object = WithLayerTypes("0_4_4_4_4_5");
  object["model_type"] = "lckv-llama";
  object["architectures"] = boost::json::array({"LCKVLlamaForCausalLM"});
  object["sliding_window"] = 4096;  // LCKV's code writes it always; no entry asks for it
  object["forward_passes"] = 3;
  object["backward_passes"] = 0;
  object["use_sequential"] = object["force_nodiag"] = true;
  const auto config = ParseLlamaConfig(boost::json::serialize(object));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->prompt_passes(), 3u);
  EXPECT_TRUE(config->use_sequential);
  EXPECT_TRUE(config->MasksSelf(0));
  object["forward_passes"] = 0;
  EXPECT_THAT(std::string(ParseLlamaConfig(boost::json::serialize(object)).status().message()),
              HasSubstr("backward_passes is 0; supported: at least 1"));
  object["forward_passes"] = -1;
  EXPECT_THAT(std::string(ParseLlamaConfig(boost::json::serialize(object)).status().message()),
              HasSubstr("forward_passes is -1; supported: an integer in 0..1024"));
}

// A layer has matrices for keys and values exactly when it computes them.
TEST(SharedLayersTest, MissingAndSuperfluousTensorsAreRefused) {
  TemporaryFolder folder;
  ThreadPool threads(1);
  const LlamaConfig config = SharingConfig("0_2_2_3");
  const FileTensors good = TensorsOf(config, RandomWeights(config, 7));
  WriteCheckpoint(folder.path(), ConfigOf(config), good);
  const auto model = Llama::Load(folder.path(), &threads);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ((*model)->config().layer_types.kv_from, config.layer_types.kv_from);
  const auto error = [&](const FileTensors& tensors) {
    WriteCheckpoint(folder.path(), ConfigOf(config), tensors);
    return std::string(Llama::Load(folder.path(), &threads).status().message());
  };
  for (const char* name : {"self_attn.k_proj.weight", "self_attn.v_proj.weight"}) {
    FileTensors missing = good, more = good;
    missing.erase(std::string("model.layers.2.") + name);
    EXPECT_THAT(error(missing), HasSubstr(std::string("model.layers.2.") + name + " is missing"));
    more[std::string("model.layers.1.") + name] = more[std::string("model.layers.2.") + name];
    EXPECT_THAT(error(more),
                AllOf(HasSubstr(std::string("model.layers.1.") + name + " has no place"),
                      HasSubstr("layer 1 uses the keys and values of layer 2")));
  }
}

// A copy of the committed model in which single files are replaced.
class DamagedModelTest : public testing::Test {
 protected:
  DamagedModelTest() : tensors_(Committed("model.safetensors")) {
    folder_.Write("config.json", Committed("config.json"));
    folder_.Write("model.safetensors", tensors_);
    uint64_t size = 0;
    std::memcpy(&size, tensors_.data(), 8);
    header_ = tensors_.substr(8, size);
  }

  // Another header before the same data.
  std::string WithHeader(const std::string& header) const {
    const uint64_t size = header.size();
    return std::string(reinterpret_cast<const char*>(&size), 8) + header +
           tensors_.substr(8 + header_.size());
  }

  std::string Error() {
    ThreadPool threads(1);
    const auto model = Llama::Load(folder_.path(), &threads);
    EXPECT_FALSE(model.ok());
    return std::string(model.status().message());
  }

  TemporaryFolder folder_;
  const std::string tensors_;
  std::string header_;
};

TEST_F(DamagedModelTest, TheCopyItselfLoads) {
  ThreadPool threads(1);
  EXPECT_TRUE(Llama::Load(folder_.path(), &threads).ok());
}

TEST_F(DamagedModelTest, TruncatedTensors) {
  folder_.Write("model.safetensors", tensors_.substr(0, tensors_.size() / 2));
  EXPECT_THAT(Error(), AllOf(HasSubstr("model.safetensors"), HasSubstr("truncated")));
  folder_.Write("model.safetensors", tensors_.substr(0, 1000));
  EXPECT_THAT(Error(), HasSubstr("does not fit"));
}

TEST_F(DamagedModelTest, MissingTensor) {
  folder_.Write("model.safetensors", WithHeader(Replace(header_, "model.layers.3.mlp.up_proj",
                                                        "model.layers.3.mlp.xx")));
  EXPECT_THAT(Error(), AllOf(HasSubstr("model.layers.3.mlp.up_proj.weight is missing"),
                             HasSubstr("[688, 256]")));
}

TEST_F(DamagedModelTest, MisshapenTensor) {
  folder_.Write("model.safetensors", WithHeader(Replace(header_, "[256,688]", "[688,256]")));
  EXPECT_THAT(Error(), AllOf(HasSubstr("model.layers.0.mlp.down_proj.weight"),
                             HasSubstr("has shape [688, 256]"), HasSubstr("wants [256, 688]")));
}

TEST_F(DamagedModelTest, OverlappingTensors) {
  folder_.Write("model.safetensors",
                WithHeader(Replace(header_, "[2097152,2097664]", "[2097150,2097662]")));
  EXPECT_THAT(Error(), HasSubstr("overlaps"));
}

TEST_F(DamagedModelTest, HeaderThatIsNoJson) {
  folder_.Write("model.safetensors", WithHeader(Replace(header_, "{", "<")));
  EXPECT_THAT(Error(), HasSubstr("not JSON"));
}

TEST_F(DamagedModelTest, ConfigThatAsksForMoreThanTheTensorsHave) {
  folder_.Write("config.json", Replace(Committed("config.json"), "\"vocab_size\": 4096",
                                       "\"vocab_size\": 4194304"));
  EXPECT_THAT(Error(), AllOf(HasSubstr("model.embed_tokens.weight"), HasSubstr("[4194304, 256]")));
  folder_.Write("config.json", Replace(Committed("config.json"), "\"num_hidden_layers\": 6",
                                       "\"num_hidden_layers\": 7"));
  EXPECT_THAT(Error(), HasSubstr("model.layers.6."));
  folder_.Write("config.json", Replace(Committed("config.json"), "\"tie_word_embeddings\": true",
                                       "\"tie_word_embeddings\": false"));
  EXPECT_THAT(Error(), HasSubstr("lm_head.weight is missing"));
}

TEST_F(DamagedModelTest, MissingFiles) {
  std::filesystem::remove(folder_.path() + "/model.safetensors");
  EXPECT_THAT(Error(), HasSubstr("model.safetensors"));
  std::filesystem::remove(folder_.path() + "/config.json");
  EXPECT_THAT(Error(), HasSubstr("config.json"));
}

TEST_F(DamagedModelTest, ShardsOfAnIndex) {
  std::filesystem::rename(folder_.path() + "/model.safetensors",
                          folder_.path() + "/model-1-of-1.safetensors");
  const auto index = [](const std::string& file) {
    return R"({"weight_map":{"model.norm.weight":")" + file + "\"}}";
  };
  folder_.Write("model.safetensors.index.json", index("model-1-of-1.safetensors"));
  ThreadPool threads(1);
  EXPECT_TRUE(Llama::Load(folder_.path(), &threads).ok());
  folder_.Write("model.safetensors.index.json", index("model-2-of-2.safetensors"));
  EXPECT_THAT(Error(), HasSubstr("model-2-of-2.safetensors"));
  for (const char* outside : {"../model-1-of-1.safetensors", "/etc/passwd", "..", ""}) {
    folder_.Write("model.safetensors.index.json", index(outside));
    EXPECT_THAT(Error(), HasSubstr("not a plain file name")) << outside;
  }
  folder_.Write("model.safetensors.index.json", "{}");
  EXPECT_THAT(Error(), HasSubstr("weight_map"));
}

}  // namespace
}  // namespace kvpool
