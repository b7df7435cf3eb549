// SPDX-License-Identifier: Apache-2.0
#include "r1d/admission/output_reader.h"

#include <utility>

#include "r1d/base/check.h"

namespace r1d::admission {

OutputReader::OutputReader(std::shared_ptr<const TextModel> text,
                           OutputOptions options,
                           int32_t num_sequences)
    : text_(std::move(text)), options_(std::move(options)) {
  for (int32_t i = 0; i < num_sequences; ++i) sequences_.push_back(make_sequence());
}

OutputReader::Sequence OutputReader::make_sequence() const {
  Sequence sequence;
  if (text_ == nullptr) return sequence;
  sequence.decoder.emplace(text_->tokenizer());
  if (options_.parser) {
    sequence.reader.emplace<chat::OutputParser>(
        text_->control_tokens(), *options_.parser, options_.stops);
  } else {
    sequence.reader = options_.stops;
  }
  return sequence;
}

ReadOutput OutputReader::read(int32_t index,
                              std::vector<engine::SampledToken> tokens,
                              std::optional<scheduler::FinishEvent> finish) {
  Sequence& sequence = sequences_.at(static_cast<size_t>(index));
  ReadOutput output;
  if (sequence.stopped) tokens.clear();
  for (engine::SampledToken& token : tokens) {
    if (sequence.stopped) break;
    read_token(sequence, token.token, output);
    output.tokens.push_back(std::move(token));
    ++sequence.num_tokens;
  }
  output.finish = std::move(finish);
  if (output.finish) end(sequence, output);
  return output;
}

void OutputReader::read_token(Sequence& sequence, TokenId token, ReadOutput& output) const {
  if (!sequence.decoder) return;
  const std::string text = sequence.decoder->push(token);
  if (auto* const parser = std::get_if<chat::OutputParser>(&sequence.reader)) {
    std::vector<chat::OutputEvent> events = parser->push(token, text);
    std::move(events.begin(), events.end(), std::back_inserter(output.events));
    sequence.stopped = parser->stopped();
  } else {
    sequence.stopped = std::get<chat::StopMatcher>(sequence.reader).push(text, output.text);
  }
  output.stopped = output.stopped || sequence.stopped;
}

void OutputReader::end(Sequence& sequence, ReadOutput& output) const {
  scheduler::FinishEvent& finish = *output.finish;
  if (sequence.stopped) {
    finish.reason = scheduler::FinishReason::kStop;
    finish.status = absl::OkStatus();
    finish.stop_token.reset();
    finish.num_output_tokens = sequence.num_tokens;
  }
  if (!sequence.decoder) return;
  const std::string tail = sequence.decoder->flush();
  if (auto* const parser = std::get_if<chat::OutputParser>(&sequence.reader)) {
    std::vector<chat::OutputEvent> events = parser->finish(tail);
    std::move(events.begin(), events.end(), std::back_inserter(output.events));
    output.num_reasoning_tokens = static_cast<int32_t>(parser->reasoning_tokens());
    output.num_tool_calls = parser->num_tool_calls();
  } else if (!sequence.stopped) {
    auto& stops = std::get<chat::StopMatcher>(sequence.reader);
    if (!stops.push(tail, output.text)) stops.flush(output.text);
  }
  if (const auto stop = stop_idx(sequence)) output.stop_text = options_.stop_texts.at(*stop);
}

std::optional<size_t> OutputReader::stop_idx(const Sequence& sequence) const {
  if (const auto* const parser = std::get_if<chat::OutputParser>(&sequence.reader)) {
    return parser->stop_idx();
  }
  return std::get<chat::StopMatcher>(sequence.reader).matched_idx();
}

}  // namespace r1d::admission
