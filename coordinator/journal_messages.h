// The bodies of journal rows: protobuf messages, which stay in journal_messages.cc.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "coordinator/state.h"

namespace stillhouse {

std::string EncodeMeta(uint64_t incarnation);
std::string EncodeJob(const Job& job);
std::string EncodeJobState(const Job& job);
std::string EncodeChunk(const Chunk& chunk);
std::string EncodeRun(const Run& run);
std::string EncodeQuarantine(const Worker& worker);

// Each: DataLoss when the body is not of that kind or holds what cannot be.
absl::Status DecodeMeta(absl::string_view body, uint64_t* incarnation);
absl::Status DecodeJob(absl::string_view body, Job* job);
absl::Status DecodeJobState(absl::string_view body, Job* job);
// REQUIRES: index < chunks->size().
absl::Status DecodeChunk(absl::string_view body, uint32_t index, ChunkTable* chunks);
absl::Status DecodeRun(absl::string_view body, Run* run);
absl::Status DecodeQuarantine(absl::string_view body, Worker* worker);

}  // namespace stillhouse
