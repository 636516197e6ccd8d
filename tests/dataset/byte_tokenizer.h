// A tokenizer whose ids are the bytes of the text, then an end id, then a beginning id.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "formats/tokenizer.h"

namespace stillhouse {

class ByteTokenizer final : public Tokenizer {
 public:
  static constexpr int32_t kEos = 256, kBos = 257;
  explicit ByteTokenizer(bool adds_bos = false, bool has_eos = true)
      : adds_bos_(adds_bos), has_eos_(has_eos) {}

  absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text) const override {
    std::vector<int32_t> ids;
    for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
    return ids;
  }
  absl::StatusOr<Encoding> EncodeWithOffsets(absl::string_view text) const override {
    Encoding encoding;
    for (uint32_t i = 0; i < text.size(); ++i) {
      encoding.ids.push_back(static_cast<unsigned char>(text[i]));
      encoding.offsets.push_back({i, i + 1});
    }
    return encoding;
  }
  absl::Span<const int32_t> prefix() const override { return {}; }
  absl::Span<const int32_t> suffix() const override { return {}; }
  absl::StatusOr<std::string> Decode(absl::Span<const int32_t> ids,
                                     bool skip_special) const override {
    std::string text;
    for (const int32_t id : ids) {
      if (id < 256) {
        text.push_back(static_cast<char>(id));
      } else if (!skip_special) {
        text += TokenBytes(id);
      }
    }
    return text;
  }
  std::string TokenBytes(int32_t id) const override {
    if (id == kEos) return "<eos>";
    return id == kBos ? "<bos>" : std::string(1, static_cast<char>(id));
  }
  int32_t size() const override { return 258; }
  std::optional<int32_t> bos_id() const override { return kBos; }
  std::optional<int32_t> eos_id() const override {
    return has_eos_ ? std::optional<int32_t>(kEos) : std::nullopt;
  }
  bool adds_bos() const override { return adds_bos_; }
  const Digest& Fingerprint() const override { return fingerprint_; }
  absl::Status WriteFiles(const std::string&) const override {
    return absl::UnimplementedError("the byte tokenizer has no files");
  }

 private:
  bool adds_bos_, has_eos_;
  Digest fingerprint_ = Sha256Of("byte tokenizer");
};

}  // namespace stillhouse
