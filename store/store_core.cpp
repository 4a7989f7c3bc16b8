#include "store/store_core.h"

#include "store/error.h"

#include <sys/stat.h>

#include <algorithm>
#include <charconv>
#include <optional>
#include <string_view>

namespace lamina::store {

namespace {

/// The digest in a file name "<hex><suffix>"; nullopt: another kind of file.
std::optional<Digest> digest_of_name(std::string_view name, std::string_view suffix) {
    constexpr std::size_t kHexDigits = 2 * Digest::kSizeBytes;
    if (name.size() != kHexDigits + suffix.size() || !name.ends_with(suffix)) return std::nullopt;
    try {
        return Digest::parse_hex(name.substr(0, kHexDigits));
    } catch (const Error&) {  // Not a digest: absence, not failure.
        return std::nullopt;
    }
}

std::uint64_t remove_counted(const std::string& path) {
    struct stat st {};
    if (::lstat(path.c_str(), &st) != 0) return 0;
    remove_file(path);
    return static_cast<std::uint64_t>(st.st_size);
}

// Each file is looked at and removed under the leases' lock: a job keeps a thing before it publishes the file, and
// commits the row before its lease ends, so a file that is neither kept nor named then belongs to nobody.
template <class IsNamed>
std::uint64_t remove_unless(StoreCore& core, const std::string& path, IsNamed&& is_named) {
    return core.leases.with_all(
        [&](const Leases::Held& held, auto&&) -> std::uint64_t { return is_named(held) ? 0 : remove_counted(path); });
}

std::uint64_t remove_stray_packs(StoreCore& core) {
    std::uint64_t freed_bytes = 0;
    for (const std::string& name : list_folder(core.paths.packs())) {
        const auto number = pack_number_of(name);
        if (!number) continue;
        freed_bytes += remove_unless(core, core.paths.packs() + "/" + name, [&](const Leases::Held& held) {
            return held.packs.contains(*number) || core.index->has_pack(*number);
        });
    }
    return freed_bytes;
}

std::uint64_t remove_stray_layers(StoreCore& core) {
    std::uint64_t freed_bytes = 0;
    for (const std::string& name : list_folder(core.paths.layers())) {
        const auto digest = digest_of_name(name, kRecipeSuffix);
        freed_bytes += remove_unless(core, core.paths.layers() + "/" + name, [&](const Leases::Held& held) {
            return digest && (held.layers.contains({*digest}) || core.index->find_layer({*digest}));
        });
    }
    return freed_bytes;
}

std::uint64_t remove_stray_trees(StoreCore& core) {
    std::uint64_t freed_bytes = 0;
    for (const std::string& name : list_folder(core.paths.trees())) {
        const auto digest = digest_of_name(name, kTreeSuffix);
        freed_bytes += remove_unless(core, core.paths.trees() + "/" + name, [&](const Leases::Held& held) {
            return digest && (held.trees.contains({*digest}) || core.index->has_tree({*digest}));
        });
    }
    return freed_bytes;
}

}  // namespace

std::optional<std::uint32_t> pack_number_of(std::string_view file_name) {
    std::uint32_t number = 0;
    const auto digits = file_name.find_first_of("0123456789");
    if (digits == std::string_view::npos) return std::nullopt;
    const char* const end = file_name.data() + file_name.size();
    if (std::from_chars(file_name.data() + digits, end, number).ec != std::errc()) return std::nullopt;
    if (pack_path("", number) != "/" + std::string(file_name)) return std::nullopt;
    return number;
}

JobFolder::JobFolder(StoreCore& core) : path_(core.paths.staging() + "/job-" + std::to_string(core.next_job++)) {
    make_folder(path_);
}

JobFolder::~JobFolder() {
    try {
        remove_tree(path_);
    } catch (const Error&) {  // The next open empties staging.
    }
}

void agree_chunk_index(StoreCore& core) {
    const std::lock_guard publishing(core.publishing);
    std::vector<std::uint32_t> committed;
    for (const PackRow& pack : core.index->packs()) committed.push_back(pack.number);
    if (core.chunks->indexed_packs() != committed) core.chunks->rebuild(committed);
}

std::uint64_t remove_strays(StoreCore& core) {
    return remove_stray_packs(core) + remove_stray_layers(core) + remove_stray_trees(core);
}

std::vector<KeptMount> kept_mounts(const StoreCore& core) {
    std::vector<KeptMount> mounts;
    for (const std::string& id : list_folder(core.paths.mounts())) {
        const std::string folder = core.paths.mount(id);
        if (!exists(folder + "/base")) continue;
        try {
            mounts.push_back({id, read_mount_base(folder)});
        } catch (const Error& error) {
            if (error.code() == Errc::not_found) continue;  // Discarded between the two looks.
            throw Error(Errc::corrupt, "mount " + id + ": its base cannot be read: " + error.what());
        }
    }
    return mounts;
}

FoundImage find_image(StoreCore& core, const std::string& text) {
    const ImageReference reference = ImageReference::parse(text);
    if (reference.name) {
        if (auto row = core.index->find_by_name(*reference.name)) return {std::move(*row), reference.name};
    }
    if (!reference.digest_prefix_hex.empty()) {
        auto rows = core.index->find_by_digest(reference.digest_prefix_hex);
        if (rows.size() == 1) return {std::move(rows.front()), std::nullopt};
        if (rows.size() > 1) {
            throw Error(Errc::malformed, "image " + text + ": " + std::to_string(rows.size()) +
                                             " images begin with these digits: give more of them");
        }
    }
    throw Error(Errc::not_found, "image " + text + ": there is none of this name or digest in the store");
}

FoundImage keep_image(StoreCore& core, Leases::Lease& lease, const std::string& text) {
    const FoundImage found = find_image(core, text);
    for (const DiffId& layer : found.row.layers) lease.keep_layer(layer);
    lease.keep_tree(found.row.tree.digest);
    FoundImage again = find_image(core, text);  // What is there now cannot be collected any more.
    if (again.row.id != found.row.id) throw Error(Errc::busy, "image " + text + ": was replaced just now: try again");
    return again;
}

std::string display_name(const ImageRow& image) {
    return image.names.empty() ? image.config.digest.text() : image.names.front();
}

}  // namespace lamina::store
