#include "store/lazy_layer.h"

#include "store/digest.h"
#include "store/error.h"
#include "store/json.h"
#include "store/recipe_file.h"

#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>

#include <algorithm>
#include <utility>

namespace lamina::store {

namespace {

constexpr std::uint64_t kMaxHeaderBytes = 64 << 10;

}  // namespace

std::vector<std::byte> LazyLayer::write() const {
    const boost::json::object header{{"version", 1},
                                     {"repository", repository},
                                     {"tls_verify", verifies_tls ? "true" : "false"},
                                     {"authfile", auth_file},
                                     {"cert_dir", cert_dir},
                                     {"media_type", blob.media_type},
                                     {"digest", blob.digest.digest.text()},
                                     {"size", blob.size_bytes}};
    const std::string line = boost::json::serialize(header) + "\n";
    const auto text = as_bytes(line);
    std::vector<std::byte> out(text.begin(), text.end());
    const std::vector<std::byte> tail = points.write();
    out.insert(out.end(), tail.begin(), tail.end());
    return out;
}

LazyLayer LazyLayer::parse(std::span<const std::byte> file) {
    const auto end = std::ranges::find(file, std::byte{'\n'});
    if (end == file.end()) throw Error(Errc::malformed, "lazy layer: no header line");
    const auto size = static_cast<std::size_t>(end - file.begin());
    const boost::json::value value = json::parse(file.first(size), {.document_bytes = kMaxHeaderBytes});
    const json::Field header(value, "lazy layer");
    if (header.member("version").size_bytes() != 1) throw Error(Errc::unsupported, "lazy layer: of another version");
    return {.repository = header.member("repository").text(),
            .verifies_tls = header.member("tls_verify").text() != "false",
            .auth_file = header.member("authfile").text(),
            .cert_dir = header.member("cert_dir").text(),
            .blob = {.media_type = header.member("media_type").text(),
                     .digest = {Digest::parse(header.member("digest").text())},
                     .size_bytes = header.member("size").size_bytes()},
            .points = AccessPoints::parse(file.subspan(size + 1))};
}

ChunkMap::ChunkMap(const std::string& recipe_path) {
    const RecipeFile file(recipe_path);
    RecipeSteps steps(file);
    std::uint64_t offset = 0;
    while (const std::optional<RecipeStep> step = steps.next()) {
        if (!step->chunk) {
            offset += step->literal_bytes;
            continue;
        }
        if (step->chunk->is_hole) continue;  // Holes are not in the tar.
        parts_.push_back({step->chunk->chunk, offset, step->chunk->size_bytes});
        offset += step->chunk->size_bytes;
    }
    number_chunks();
}

ChunkMap::ChunkMap(std::vector<Part> parts) : parts_(std::move(parts)) {
    number_chunks();
}

void ChunkMap::number_chunks() {
    by_chunk_.reserve(parts_.size());
    for (std::size_t number = 0; number < parts_.size(); ++number) by_chunk_.emplace(parts_[number].chunk, number);
}

const ChunkMap::Part* ChunkMap::find(const ChunkId& chunk) const {
    const auto found = by_chunk_.find(chunk);
    return found == by_chunk_.end() ? nullptr : &parts_[found->second];
}

// A header lies before each file, so that only parts of one file touch.
std::optional<ChunkMap::Range> ChunkMap::file_of(const Part& part, std::uint64_t limit_bytes) const {
    Range range{.first = part.tar_offset, .end = part.tar_offset + part.size_bytes};
    const auto at = static_cast<std::size_t>(&part - parts_.data());
    for (std::size_t i = at; i > 0 && range.end - range.first <= limit_bytes; --i) {
        const Part& before = parts_[i - 1];
        if (before.tar_offset + before.size_bytes != range.first) break;
        range.first = before.tar_offset;
    }
    for (std::size_t i = at + 1; i < parts_.size() && range.end - range.first <= limit_bytes; ++i) {
        if (parts_[i].tar_offset != range.end) break;
        range.end += parts_[i].size_bytes;
    }
    if (range.end - range.first > limit_bytes) return std::nullopt;
    return range;
}

std::span<const ChunkMap::Part> ChunkMap::beginning_in(std::uint64_t tar_first, std::uint64_t tar_end) const {
    const auto is_before = [](const Part& a, std::uint64_t offset) { return a.tar_offset < offset; };
    const auto first = std::lower_bound(parts_.begin(), parts_.end(), tar_first, is_before);
    const auto end = std::lower_bound(first, parts_.end(), tar_end, is_before);
    return {first, end};
}

}  // namespace lamina::store
