#include "formats/aligned_text.h"

#include "common/status.h"
#include "common/utf8.h"

namespace stillhouse {

void AppendUtf8(char32_t code, std::string& out) {
  if (code < 0x80) {
    out.push_back(static_cast<char>(code));
    return;
  }
  if (code < 0x800) {
    out.push_back(static_cast<char>(0xc0 | code >> 6));
  } else {
    if (code < 0x10000) {
      out.push_back(static_cast<char>(0xe0 | code >> 12));
    } else {
      out.push_back(static_cast<char>(0xf0 | code >> 18));
      out.push_back(static_cast<char>(0x80 | (code >> 12 & 0x3f)));
    }
    out.push_back(static_cast<char>(0x80 | (code >> 6 & 0x3f)));
  }
  out.push_back(static_cast<char>(0x80 | (code & 0x3f)));
}

void AlignedText::Track(absl::string_view text) {
  tracked_ = true;
  text_.assign(text.data(), text.size());
  ranges_.resize(text.size());
  for (size_t at = 0; at < text.size();) {
    const auto size = static_cast<size_t>(Utf8Length(text.substr(at, 4)));
    for (size_t i = at; i < at + size; ++i) {
      ranges_[i] = {static_cast<uint32_t>(at), static_cast<uint32_t>(at + size)};
    }
    at += size;
  }
}

void AlignedText::Clear(const TextView& source) {
  tracked_ = source.ranges != nullptr;
  text_.clear();
  ranges_.clear();
}

void AlignedText::Append(const TextView& part) {
  text_.append(part.text.data(), part.text.size());
  if (tracked_) ranges_.insert(ranges_.end(), part.ranges, part.ranges + part.text.size());
}

void AlignedText::AppendNew(absl::string_view characters, TextRange place) {
  text_.append(characters.data(), characters.size());
  if (tracked_) ranges_.insert(ranges_.end(), characters.size(), place);
}

void AlignedText::Transform(const TextView& source, absl::Span<const CharChange> changes) {
  Clear(source);
  size_t at = 0;  // in source
  const auto skip = [&] {
    if (at < source.text.size()) at += static_cast<size_t>(Utf8Length(source.text.substr(at, 4)));
  };
  for (const auto& [code, change] : changes) {
    if (tracked_) {
      const size_t size = text_.size();
      AppendUtf8(code, text_);
      TextRange place = {source.ranges[0].begin, source.ranges[0].begin};
      if (change <= 0 && at < source.text.size()) place = source.ranges[at];
      if (change > 0 && at > 0) place = source.ranges[at - 1];
      ranges_.insert(ranges_.end(), text_.size() - size, place);
      for (int32_t i = change; i <= 0; ++i) skip();
    } else {
      AppendUtf8(code, text_);
    }
  }
}

}  // namespace stillhouse
