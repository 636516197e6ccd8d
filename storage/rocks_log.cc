#include "storage/rocks_log.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/byte_io.h"
#include "common/file.h"
#include "common/status.h"

namespace stillhouse {
namespace {

// A log is blocks of pieces; a batch is one full piece, or a first, middle ones and a last.
constexpr size_t kBlockBytes = 32 << 10;
constexpr size_t kHeaderBytes = 7;  // masked CRC-32C of type and payload, length, type
enum PieceType : uint8_t { kFull = 1, kFirst = 2, kMiddle = 3, kLast = 4 };
constexpr size_t kBatchHeaderBytes = 12;  // sequence, number of changes
constexpr size_t kLinesMax = 1000;        // of damage, that a report names

constexpr std::array<uint32_t, 256> MakeCrcTable() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82f63b78u : 0);
    table[i] = crc;
  }
  return table;
}
constexpr std::array<uint32_t, 256> kCrcTable = MakeCrcTable();

uint32_t MaskedCrc(absl::string_view bytes) {
  uint32_t crc = ~0u;
  for (const char byte : bytes) {
    crc = kCrcTable[(crc ^ static_cast<uint8_t>(byte)) & 0xff] ^ (crc >> 8);
  }
  crc = ~crc;
  return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
}

struct Piece {
  uint8_t type;
  absl::string_view payload;
};

struct PieceHeader {
  uint32_t crc = 0;
  uint16_t length = 0;
  uint8_t type = 0;
};

// REQUIRES: kHeaderBytes lie at `at`.
PieceHeader HeaderAt(absl::string_view bytes, size_t at) {
  PieceHeader header;
  ByteReader reader(bytes.substr(at, kHeaderBytes));
  reader.Get(&header.crc);
  reader.Get(&header.length);
  reader.Get(&header.type);
  return header;
}

size_t BlockEnd(size_t at) { return (at / kBlockBytes + 1) * kBlockBytes; }

// The piece at `at` if it is whole and lies within its block.
std::optional<Piece> PieceAt(absl::string_view bytes, size_t at) {
  const size_t end = std::min(BlockEnd(at), bytes.size());
  if (at + kHeaderBytes > end) return std::nullopt;
  const PieceHeader header = HeaderAt(bytes, at);
  if (header.type < kFull || header.type > kLast) return std::nullopt;
  if (header.length > end - at - kHeaderBytes) return std::nullopt;
  // The checksum begins with the type, the header's last byte.
  const absl::string_view summed = bytes.substr(at + kHeaderBytes - 1, 1 + header.length);
  if (MaskedCrc(summed) != header.crc) return std::nullopt;
  return Piece{header.type, summed.substr(1)};
}

void SortByNumber(std::vector<std::string>& names) {
  std::stable_sort(names.begin(), names.end(), [](const std::string& a, const std::string& b) {
    return LogNumber(a) < LogNumber(b);
  });
}

absl::StatusOr<std::string> ReadFirstBlock(const std::string& path) {
  SH_ASSIGN_OR_RETURN(const int fd, OpenRegularFile(path));
  std::string bytes(kBlockBytes, '\0');
  const ssize_t got = read(fd, bytes.data(), bytes.size());
  const absl::Status status = got < 0 ? ErrnoStatus("reading", path) : absl::OkStatus();
  close(fd);
  SH_RETURN_IF_ERROR(status);
  bytes.resize(got);
  return bytes;
}

class LogParser {
 public:
  explicit LogParser(absl::string_view bytes) : bytes_(bytes) {}

  LogContent Run() {
    size_t at = 0;
    while (at < bytes_.size()) {
      if (BlockEnd(at) - at < kHeaderBytes) {
        at = BlockEnd(at);
        continue;
      }
      if (CutShortAt(at)) break;
      if (const std::optional<Piece> piece = PieceAt(bytes_, at)) {
        Take(*piece, at);
        at += kHeaderBytes + piece->payload.size();
        continue;
      }
      const size_t next = BehindDamage(at);
      Damaged(at, next - at);
      at = next;
    }
    if (state_ == State::kInBatch) content_.tail = std::move(batch_);
    const size_t written = bytes_.find_last_not_of('\0') + 1;
    if (at < written) content_.tail.append(bytes_.data() + at, written - at);
    return std::move(content_);
  }

 private:
  enum class State { kBetween, kInBatch, kLost };

  // Does the file end within what begins here, or was nothing written from here on?
  bool CutShortAt(size_t at) const {
    if (bytes_.size() - at < kHeaderBytes) return true;
    const PieceHeader header = HeaderAt(bytes_, at);
    if (header.type == 0) {
      return bytes_.substr(at).find_first_not_of('\0') == absl::string_view::npos;
    }
    const size_t end = at + kHeaderBytes + header.length;
    return header.type <= kLast && end > bytes_.size() && end <= BlockEnd(at);
  }

  // Where the next whole piece of the block begins, or the next block.
  size_t BehindDamage(size_t at) const {
    const size_t end = std::min(BlockEnd(at), bytes_.size());
    for (size_t next = at + 1; next + kHeaderBytes <= end; ++next) {
      if (PieceAt(bytes_, next).has_value()) return next;
    }
    return end;
  }

  void Damaged(size_t at, size_t bytes) {
    content_.damage.push_back({at, bytes});
    content_.rest += batch_;
    batch_.clear();
    content_.after_damage = content_.batches.size();
    state_ = State::kLost;
  }

  void Take(const Piece& piece, size_t at) {
    const bool begins = piece.type == kFull || piece.type == kFirst;
    // Pieces that do not fit together, with no damaged one between them: something was cut out.
    if (begins == (state_ == State::kInBatch) && state_ != State::kLost) Damaged(at, 0);
    if (begins) state_ = State::kInBatch;
    std::string& target = state_ == State::kInBatch ? batch_ : content_.rest;
    target.append(piece.payload.data(), piece.payload.size());
    if (piece.type == kFirst || piece.type == kMiddle) return;
    if (state_ == State::kInBatch && batch_.size() >= kBatchHeaderBytes) {
      content_.batches.push_back(std::move(batch_));
    }
    batch_.clear();
    // Behind damage a last piece ends the batch that was lost.
    state_ = State::kBetween;
  }

  const absl::string_view bytes_;
  State state_ = State::kBetween;
  std::string batch_;  // as far as it was read
  LogContent content_;
};

}  // namespace

absl::StatusOr<LogContent> ReadLog(const std::string& path) {
  SH_ASSIGN_OR_RETURN(const std::string bytes, ReadFile(path));
  LogContent content = LogParser(bytes).Run();
  content.name = BaseName(path);
  return content;
}

std::vector<std::string> DescribeDamage(const LogContent& log) {
  std::vector<std::string> lines;
  for (const LogDamage& damage : log.damage) {
    if (lines.size() == kLinesMax) break;
    lines.push_back(
        damage.bytes > 0
            ? absl::StrCat("log ", log.name, ": dropping ", damage.bytes, " bytes at ",
                           damage.offset, ", which do not match their checksum")
            : absl::StrCat("log ", log.name, ": something is missing before ", damage.offset));
  }
  return lines;
}

uint64_t SequenceOf(absl::string_view batch) {
  uint64_t sequence = 0;
  ByteReader(batch).Get(&sequence);
  return sequence;
}

uint64_t LogNumber(absl::string_view name) {
  uint64_t number = 0;
  const bool parsed = absl::ConsumeSuffix(&name, ".log") && !name.empty() &&
                      absl::ascii_isdigit(name[0]) && absl::SimpleAtoi(name, &number);
  return parsed ? number : 0;
}

absl::StatusOr<std::vector<std::string>> ListLogs(const std::string& folder) {
  SH_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListFolder(folder));
  std::vector<std::string> logs;
  for (const std::string& name : names) {
    struct stat info {};
    const bool file = stat(JoinPath(folder, name).c_str(), &info) == 0 && S_ISREG(info.st_mode);
    if (file && LogNumber(name) > 0) logs.push_back(name);
  }
  SortByNumber(logs);
  return logs;
}

bool SyncedWhole(const std::string& log, const std::vector<std::string>& synced) {
  return !synced.empty() && LogNumber(log) < LogNumber(synced.back());
}

absl::Status CheckLogFiles(const std::string& folder) {
  SH_ASSIGN_OR_RETURN(const std::vector<std::string> missing, MissingLogs(folder));
  if (!missing.empty()) {
    return absl::DataLossError(absl::StrCat("the log ", missing[0], " is gone or empty"));
  }
  SH_ASSIGN_OR_RETURN(const std::vector<std::string> noted, ReadSyncedLogs(folder));
  SH_ASSIGN_OR_RETURN(const std::vector<std::string> logs, ListLogs(folder));
  for (const std::string& name : logs) {
    if (!SyncedWhole(name, noted)) continue;
    SH_ASSIGN_OR_RETURN(const LogContent log, ReadLog(JoinPath(folder, name)));
    if (!log.tail.empty()) {
      return absl::DataLossError(absl::StrCat("the end of the log ", name, " is cut off"));
    }
  }
  std::string before;
  uint64_t next = 0;  // the lowest number that may follow
  for (const std::string& name : logs) {
    SH_ASSIGN_OR_RETURN(const std::string head, ReadFirstBlock(JoinPath(folder, name)));
    const std::optional<Piece> piece = PieceAt(head, 0);
    if (!piece.has_value() || piece->type > kFirst || piece->payload.size() < kBatchHeaderBytes) {
      continue;  // empty, or damaged: the replay tells
    }
    uint64_t sequence = 0;
    uint32_t changes = 0;
    ByteReader reader(piece->payload);
    reader.Get(&sequence);
    reader.Get(&changes);
    if (sequence < next) {
      return absl::DataLossError(absl::StrCat("the log ", name, " is not younger than ", before,
                                              ", which comes before it"));
    }
    // An empty batch takes no number, and one that a crash cut short none for good.
    next = sequence + (changes > 0 && piece->type == kFull);
    before = name;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> ReadSyncedLogs(const std::string& folder) {
  const auto text = ReadFile(JoinPath(folder, kSyncedLogsName));
  if (absl::IsNotFound(text.status())) return std::vector<std::string>();
  SH_RETURN_IF_ERROR(text.status());
  std::vector<std::string> names = absl::StrSplit(*text, '\n', absl::SkipEmpty());
  SortByNumber(names);
  return names;
}

absl::StatusOr<std::vector<std::string>> MissingLogs(const std::string& folder) {
  SH_ASSIGN_OR_RETURN(std::vector<std::string> names, ReadSyncedLogs(folder));
  std::erase_if(names, [&](const auto& name) {
    struct stat info {};
    const bool there = stat(JoinPath(folder, name).c_str(), &info) == 0;
    return there && S_ISREG(info.st_mode) && info.st_size > 0;
  });
  return names;
}

}  // namespace stillhouse
