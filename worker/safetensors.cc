// The safetensors format (huggingface/safetensors README): u64 little-endian header length, a JSON
// header {name: {dtype, shape, data_offsets: [begin, end]}}, then the bytes, without holes.
//
// SPDX-License-Identifier: Apache-2.0
#include "worker/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <boost/json.hpp>
#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace kvpool {
namespace {

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own maximum
constexpr uint64_t kMaxDims = 8;

absl::Status Bad(const std::string& what) { return absl::InvalidArgumentError(what); }

std::optional<TensorType> ParseType(const boost::json::string& name) {
  if (name == "F32") return TensorType::kF32;
  if (name == "F16") return TensorType::kF16;
  if (name == "BF16") return TensorType::kBf16;
  return std::nullopt;
}

uint64_t ElementBytes(TensorType type) { return type == TensorType::kF32 ? 4 : 2; }

// A non-negative JSON integer.
std::optional<uint64_t> ParseCount(const boost::json::value& value) {
  if (value.is_uint64()) return value.get_uint64();
  if (value.is_int64() && value.get_int64() >= 0) return value.get_int64();
  return std::nullopt;
}

absl::StatusOr<TensorView> ParseTensor(const boost::json::value& value,
                                       std::span<const std::byte> buffer) {
  const auto* object = value.if_object();
  if (object == nullptr) return Bad("is not an object");
  const auto* dtype = object->if_contains("dtype");
  const auto* shape = object->if_contains("shape");
  const auto* offsets = object->if_contains("data_offsets");
  if (dtype == nullptr || !dtype->is_string()) return Bad("has no dtype");
  if (shape == nullptr || !shape->is_array()) return Bad("has no shape");
  if (offsets == nullptr || !offsets->is_array() || offsets->get_array().size() != 2) {
    return Bad("has no data_offsets [begin, end]");
  }
  const std::optional<TensorType> type = ParseType(dtype->get_string());
  if (!type) {
    return Bad(absl::StrCat("has dtype ", dtype->get_string().c_str(),
                            "; supported are F32, F16 and BF16"));
  }
  TensorView tensor{.type = *type};
  uint64_t bytes = ElementBytes(*type);
  if (shape->get_array().size() > kMaxDims) return Bad("has too many dimensions");
  for (const auto& dim : shape->get_array()) {
    const std::optional<uint64_t> count = ParseCount(dim);
    if (!count) return Bad("has a dimension that is no count");
    if (__builtin_mul_overflow(bytes, *count, &bytes)) return Bad("has an impossible shape");
    tensor.shape.push_back(*count);
  }
  const std::optional<uint64_t> begin = ParseCount(offsets->get_array()[0]);
  const std::optional<uint64_t> end = ParseCount(offsets->get_array()[1]);
  if (!begin || !end || *begin > *end || *end > buffer.size()) {
    return Bad(absl::StrCat("has data_offsets outside the file's ", buffer.size(),
                            " data bytes; is the file truncated?"));
  }
  if (*end - *begin != bytes) {
    return Bad(absl::StrCat("has ", *end - *begin, " bytes where its shape takes ", bytes));
  }
  tensor.data = buffer.subspan(*begin, bytes);
  return tensor;
}

// The tensors must follow each other without holes or overlaps and end with the file.
absl::Status CheckCover(const std::map<std::string, TensorView>& tensors,
                        std::span<const std::byte> buffer) {
  std::vector<std::pair<std::span<const std::byte>, const std::string*>> parts;
  parts.reserve(tensors.size());
  for (const auto& [name, tensor] : tensors) parts.emplace_back(tensor.data, &name);
  std::sort(parts.begin(), parts.end(), [](const auto& a, const auto& b) {
    return std::pair(a.first.data(), a.first.size()) < std::pair(b.first.data(), b.first.size());
  });
  const std::byte* next = buffer.data();
  for (const auto& [data, name] : parts) {
    if (data.data() < next) return Bad(absl::StrCat("tensor ", *name, " overlaps another"));
    if (data.data() > next) return Bad(absl::StrCat("hole before tensor ", *name));
    next = data.data() + data.size();
  }
  if (next != buffer.data() + buffer.size()) return Bad("bytes after the last tensor");
  return absl::OkStatus();
}

absl::StatusOr<std::map<std::string, TensorView>> ParseFile(std::span<const std::byte> file) {
  static_assert(std::endian::native == std::endian::little);
  uint64_t header_bytes = 0;
  if (file.size() < sizeof header_bytes) return Bad("shorter than 8 bytes; truncated?");
  std::memcpy(&header_bytes, file.data(), sizeof header_bytes);
  if (header_bytes > kMaxHeaderBytes || header_bytes > file.size() - sizeof header_bytes) {
    return Bad(absl::StrCat("header of ", header_bytes, " bytes does not fit in a file of ",
                            file.size(), " bytes"));
  }
  const auto header = file.subspan(sizeof header_bytes, header_bytes);
  const auto buffer = file.subspan(sizeof header_bytes + header_bytes);
  boost::json::error_code error;
  const boost::json::value json =
      boost::json::parse({reinterpret_cast<const char*>(header.data()), header.size()}, error);
  if (error) return Bad(absl::StrCat("header is not JSON: ", error.message()));
  if (!json.is_object()) return Bad("header is not a JSON object");
  std::map<std::string, TensorView> tensors;
  for (const auto& [key, value] : json.get_object()) {
    if (key == "__metadata__") continue;
    const std::string name(key);
    absl::StatusOr<TensorView> tensor = ParseTensor(value, buffer);
    if (!tensor.ok()) {
      return Bad(absl::StrCat("tensor ", name, " ", tensor.status().message()));
    }
    tensors.emplace(name, *std::move(tensor));
  }
  if (absl::Status status = CheckCover(tensors, buffer); !status.ok()) return status;
  return tensors;
}

float HalfToFloat(uint16_t half) {
  const uint32_t sign = uint32_t{half & 0x8000u} << 16;
  const uint32_t exponent = (half >> 10) & 0x1f, mantissa = half & 0x3ff;
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
  }
  const uint32_t wide = exponent == 31 ? 255 : exponent + 112;
  return std::bit_cast<float>(sign | wide << 23 | mantissa << 13);
}

float Bf16ToFloat(uint16_t value) { return std::bit_cast<float>(uint32_t{value} << 16); }

template <float (*Convert)(uint16_t)>
void ConvertHalves(std::span<const std::byte> data, std::span<float> out) {
  for (size_t i = 0; i < out.size(); ++i) {
    uint16_t element;  // the format promises no alignment
    std::memcpy(&element, data.data() + 2 * i, 2);
    out[i] = Convert(element);
  }
}

}  // namespace

absl::StatusOr<SafetensorsFile> SafetensorsFile::Open(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    return absl::NotFoundError(absl::StrCat("cannot open ", path, ": ", std::strerror(errno)));
  }
  struct stat info {};
  if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode) || info.st_size == 0) {
    close(fd);
    return Bad(absl::StrCat(path, " is empty or no regular file"));
  }
  const size_t size = info.st_size;
  void* const address = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
  const int map_error = errno;
  close(fd);
  if (address == MAP_FAILED) {
    return absl::InternalError(absl::StrCat("cannot map ", path, ": ", std::strerror(map_error)));
  }
  SafetensorsFile file({static_cast<const std::byte*>(address), size});
  absl::StatusOr<std::map<std::string, TensorView>> tensors = ParseFile(file.mapping_);
  if (!tensors.ok()) return Bad(absl::StrCat(path, ": ", tensors.status().message()));
  file.tensors_ = *std::move(tensors);
  return file;
}

SafetensorsFile::SafetensorsFile(SafetensorsFile&& other) noexcept
    : mapping_(std::exchange(other.mapping_, {})), tensors_(std::move(other.tensors_)) {}

SafetensorsFile::~SafetensorsFile() {
  if (!mapping_.empty()) munmap(const_cast<std::byte*>(mapping_.data()), mapping_.size());
}

const TensorView* SafetensorsFile::Find(const std::string& name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

void ConvertToF32(const TensorView& tensor, std::span<float> out) {
  switch (tensor.type) {
    case TensorType::kF32:
      std::memcpy(out.data(), tensor.data.data(), out.size_bytes());
      return;
    case TensorType::kF16:
      return ConvertHalves<HalfToFloat>(tensor.data, out);
    case TensorType::kBf16:
      return ConvertHalves<Bf16ToFloat>(tensor.data, out);
  }
}

}  // namespace kvpool
