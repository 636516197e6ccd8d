// Which way to read a database: mapped while it fits into the memory that this process may use,
// else direct (KvReads, storage/kv_store.h).
#pragma once

#include <cstdint>
#include <string>

#include "storage/kv_store.h"

namespace stillhouse {

// Bytes that files may take in the page cache: what the machine has available, or less where a
// control group (version 1 or 2) of this process or one above it sets a limit. `root` is where
// /proc and /sys are found. A machine that tells nothing has no limit.
uint64_t MemoryForFiles(const std::string& root = "/");

// Of the files in `folder`, those of a database; 0 if there is none.
uint64_t DatabaseBytes(const std::string& folder);

// Whether `file`, which is there, can be read past the page cache: not every file system can.
bool SupportsDirectReads(const std::string& file);

KvReads ChooseReads(uint64_t database_bytes, uint64_t memory_bytes);

}  // namespace stillhouse
