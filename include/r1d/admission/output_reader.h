// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "r1d/admission/text_model.h"
#include "r1d/chat/output_parser.h"
#include "r1d/chat/stop_matcher.h"
#include "r1d/engine/sampling.h"
#include "r1d/scheduler/request.h"
#include "r1d/tokenizer/stream_decoder.h"

namespace r1d::admission {

// How a request's output is to be read.
struct OutputOptions {
  chat::StopMatcher stops;
  std::vector<std::string> stop_texts;              // those of `stops`
  std::optional<chat::OutputParserOptions> parser;  // of a chat; none: text as it is
};

// Tokens of one sequence, as a client gets them.
struct ReadOutput {
  std::vector<engine::SampledToken> tokens;
  std::string text;                       // of a generation
  std::vector<chat::OutputEvent> events;  // of a chat
  // A stop text came with the last of these tokens: the sequence should end. Said once.
  bool stopped = false;
  std::optional<scheduler::FinishEvent> finish;
  // With `finish`:
  std::optional<std::string> stop_text;
  int32_t num_reasoning_tokens = 0;
  int32_t num_tool_calls = 0;
};

// Reads the output of one request's sequences: text from tokens, stop texts, reasoning and tool
// calls. A sequence that a stop text ended has ended there for its reader, whatever the engine
// still sends of it: later tokens are dropped, and its finish says kStop. Threads: externally
// locked.
class OutputReader {
 public:
  // `text`: null when the model has no tokenizer; tokens then pass as they are.
  OutputReader(std::shared_ptr<const TextModel> text, OutputOptions options, int32_t num_sequences);

  // The next tokens of sequence `index`, and its end if it has come.
  [[nodiscard]] ReadOutput read(int32_t index,
                                std::vector<engine::SampledToken> tokens,
                                std::optional<scheduler::FinishEvent> finish);

  // Whether tokens have to be read as they come, since one of them may end its sequence.
  [[nodiscard]] bool may_stop() const { return !options_.stop_texts.empty(); }

 private:
  struct Sequence {
    std::optional<tokenizer::StreamDecoder> decoder;
    std::variant<chat::StopMatcher, chat::OutputParser> reader;
    int32_t num_tokens = 0;
    bool stopped = false;
  };

  [[nodiscard]] Sequence make_sequence() const;
  void read_token(Sequence& sequence, TokenId token, ReadOutput& output) const;
  void end(Sequence& sequence, ReadOutput& output) const;
  [[nodiscard]] std::optional<size_t> stop_idx(const Sequence& sequence) const;

  const std::shared_ptr<const TextModel> text_;
  const OutputOptions options_;
  std::vector<Sequence> sequences_;
};

}  // namespace r1d::admission
