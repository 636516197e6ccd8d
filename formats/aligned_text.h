// Text on its way through normalizers and pre-tokenizers, with what every byte of it came from.
//
// The bookkeeping is that of the Python `tokenizers` package, so that offsets agree with its own:
// a change is a list of characters, each saying how many characters of the old text it stands for.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "formats/tokenizer.h"

namespace stillhouse {

// A piece of text that somebody else owns. `ranges` has one entry per byte, the same for all bytes
// of a character; null where nobody asked for offsets.
struct TextView {
  absl::string_view text;
  const TextRange* ranges = nullptr;

  TextView Sub(size_t begin, size_t end) const {
    return {text.substr(begin, end - begin), ranges == nullptr ? nullptr : ranges + begin};
  }
  // What the bytes [begin, end) came from. REQUIRES: ranges, and begin < end <= text.size().
  TextRange Source(size_t begin, size_t end) const {
    return {ranges[begin].begin, ranges[end - 1].end};
  }
};

// One character of a changed text: 0 replaces a character, -n replaces one and drops n that follow,
// 1 is new and shares the place of what stands before it.
struct CharChange {
  char32_t code;
  int32_t change;
};

class AlignedText {
 public:
  TextView view() const { return {text_, tracked_ ? ranges_.data() : nullptr}; }

  // Every character is its own source.
  void Track(absl::string_view text);
  // The empty text, to which Append and AppendNew add; tracked if `source` is.
  void Clear(const TextView& source);
  void Append(const TextView& part);
  // Characters that came from `place` as a whole.
  void AppendNew(absl::string_view characters, TextRange place);
  // The whole of `source` replaced by `changes`.
  void Transform(const TextView& source, absl::Span<const CharChange> changes);

 private:
  std::string text_;
  std::vector<TextRange> ranges_;
  bool tracked_ = false;
};

void AppendUtf8(char32_t code, std::string& out);

}  // namespace stillhouse
