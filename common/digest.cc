#include "common/digest.h"

#include <openssl/evp.h>
#include <xxhash.h>
#if defined(__x86_64__) && __has_include(<xxh_x86dispatch.h>)
#include <xxh_x86dispatch.h>  // the functions of the same names, by what the processor can do
#endif

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "common/status.h"

namespace stillhouse {

std::string Digest::Hex() const { return absl::BytesToHexString(AsStringView()); }

std::string Digest::ShortHex() const { return Hex().substr(0, 8); }

absl::string_view Digest::AsStringView() const {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

absl::StatusOr<Digest> DigestFromHex(absl::string_view hex) {
  if (hex.size() != 64) {
    return absl::InvalidArgumentError(
        absl::StrCat("a digest has 64 hexadecimal digits, not ", hex.size()));
  }
  for (char c : hex) {
    if (!absl::ascii_isxdigit(static_cast<unsigned char>(c))) {
      return absl::InvalidArgumentError("a digest has hexadecimal digits only");
    }
  }
  return DigestFromBytes(absl::HexStringToBytes(hex));
}

absl::StatusOr<Digest> DigestFromBytes(absl::string_view raw) {
  Digest digest;
  if (raw.size() != digest.bytes.size()) {
    return absl::InvalidArgumentError(absl::StrCat("a digest has 32 bytes, not ", raw.size()));
  }
  std::copy(raw.begin(), raw.end(), digest.bytes.begin());
  return digest;
}

struct Sha256::Impl {
  EVP_MD_CTX* context = EVP_MD_CTX_new();
};

Sha256::Sha256() : impl_(std::make_unique<Impl>()) {
  SH_CHECK(impl_->context != nullptr);
  SH_CHECK(EVP_DigestInit_ex(impl_->context, EVP_sha256(), nullptr) == 1);
}

Sha256::~Sha256() { EVP_MD_CTX_free(impl_->context); }

Sha256& Sha256::AddRaw(const void* data, size_t size) {
  SH_CHECK(EVP_DigestUpdate(impl_->context, data, size) == 1);
  return *this;
}

Sha256& Sha256::AddU64(uint64_t value) {
  uint8_t le[8];
  for (int i = 0; i < 8; ++i) le[i] = static_cast<uint8_t>(value >> (8 * i));
  return AddRaw(le, sizeof(le));
}

Sha256& Sha256::AddField(absl::string_view bytes) {
  AddU64(bytes.size());
  return AddRaw(bytes);
}

Sha256& Sha256::AddDigest(const Digest& digest) { return AddRaw(digest.AsStringView()); }

Digest Sha256::Finish() {
  Digest digest;
  unsigned int size = 0;
  SH_CHECK(EVP_DigestFinal_ex(impl_->context, digest.bytes.data(), &size) == 1);
  SH_CHECK(size == digest.bytes.size());
  return digest;
}

Digest Sha256Of(absl::string_view bytes) { return Sha256().AddRaw(bytes).Finish(); }

uint64_t Xxh3(absl::string_view bytes) { return XXH3_64bits(bytes.data(), bytes.size()); }

uint64_t Xxh3(const void* data, size_t size) { return XXH3_64bits(data, size); }

Xxh3Stream::Xxh3Stream() : state_(XXH3_createState()) {
  SH_CHECK(state_ != nullptr);
  XXH3_64bits_reset(static_cast<XXH3_state_t*>(state_));
}

Xxh3Stream::~Xxh3Stream() { XXH3_freeState(static_cast<XXH3_state_t*>(state_)); }

void Xxh3Stream::Add(absl::string_view bytes) {
  XXH3_64bits_update(static_cast<XXH3_state_t*>(state_), bytes.data(), bytes.size());
}

uint64_t Xxh3Stream::Finish() const {
  return XXH3_64bits_digest(static_cast<const XXH3_state_t*>(state_));
}

}  // namespace stillhouse
