#include "support/tree_bytes.h"

#include "store/file.h"
#include "store/tree_format.h"

#include <algorithm>
#include <cstring>

namespace lamina::test {

using namespace store::tree_format;

std::string bytes_of_file(const std::string& path) {
    const auto data = store::read_file(path, 1 << 30);
    return {reinterpret_cast<const char*>(data.data()), data.size()};
}

store::TreeDigest sign_tree(std::span<char> tree) {
    const auto bytes = std::as_writable_bytes(tree);
    Header header;
    if (bytes.size() < sizeof header) return {store::Digest::of(bytes)};
    std::memcpy(&header, bytes.data(), sizeof header);
    const std::uint64_t head_bytes = header.header_bytes;
    if (head_bytes < kHeaderAlignBytes || head_bytes > bytes.size()) return {store::Digest::of(bytes)};
    const std::uint64_t body_bytes = bytes.size() - head_bytes;
    const std::uint64_t room = (head_bytes - sizeof header) / store::Digest::kSizeBytes;
    for (std::uint64_t block = 0; block < std::min(block_count(body_bytes), room); ++block) {
        const std::uint64_t begin = block * kBlockBytes;
        const auto data = bytes.subspan(head_bytes + begin, std::min(kBlockBytes, body_bytes - begin));
        const auto digest = store::Digest::of(data);
        std::memcpy(bytes.data() + sizeof header + block * store::Digest::kSizeBytes, digest.bytes().data(),
                    store::Digest::kSizeBytes);
    }
    return {store::Digest::of(bytes.first(head_bytes))};
}

}  // namespace lamina::test
