# Debian's packages, found once. Each folder links what it includes.
find_package(Threads REQUIRED)
find_package(absl REQUIRED)
find_package(OpenSSL REQUIRED)
find_package(spdlog REQUIRED)
find_package(Protobuf REQUIRED)
find_package(RocksDB REQUIRED)       # link RocksDB::rocksdb-shared: the plain target is the static one
find_package(cppzmq REQUIRED)        # links cppzmq
find_package(yaml-cpp REQUIRED)      # links yaml-cpp
find_package(nlohmann_json REQUIRED)
find_package(CLI11 REQUIRED)
find_package(ICU REQUIRED COMPONENTS uc)
find_package(PkgConfig REQUIRED)
pkg_check_modules(xxhash REQUIRED IMPORTED_TARGET libxxhash)
pkg_check_modules(pcre2 REQUIRED IMPORTED_TARGET libpcre2-8)
if(STILLHOUSE_TESTS)
  find_package(GTest REQUIRED)
endif()
