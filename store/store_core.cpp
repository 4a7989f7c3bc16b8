#include "store/store_core.h"

#include "store/error.h"

#include <sys/stat.h>

#include <algorithm>
#include <charconv>
#include <iterator>
#include <optional>
#include <set>
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

std::uint64_t bytes_of_file(const std::string& path) {
    struct stat st {};
    return ::lstat(path.c_str(), &st) == 0 ? static_cast<std::uint64_t>(st.st_size) : 0;
}

/// A mount may have it open for as long as it runs, and would keep its blocks.
void remove_pack_file(const std::string& path) {
    try {
        File::open_append(path).truncate(0);
    } catch (const Error& error) {
        if (error.code() != Errc::not_found) throw;
    }
    remove_file(path);
}

// Each file is looked at and removed under the leases' lock: a job keeps a thing before it publishes the file, and
// commits the row before its lease ends, so a file that is neither kept nor named then belongs to nobody.
class Strays {
public:
    Strays(StoreCore& core, bool is_dry_run) : core_(core), is_dry_run_(is_dry_run) {
        for (const std::uint32_t pack : core.chunks->indexed_packs()) listed_.insert(pack);
    }

    std::uint64_t take() {
        take_from(core_.paths.packs(), [&](const std::string& name, const Leases::Held& held) {
            const auto number = pack_number_of(name);
            return !number || held.packs.contains(*number) || listed_.contains(*number) ||
                   core_.index->has_pack(*number);
        });
        take_from(core_.paths.layers(), [&](const std::string& name, const Leases::Held& held) {
            auto digest = digest_of_name(name, kRecipeSuffix);
            for (const char* const suffix : {kLazySuffix, kBlobSuffix, kQuarantineSuffix}) {
                if (!digest) digest = digest_of_name(name, suffix);
            }
            return digest && (held.layers.contains({*digest}) || core_.index->find_layer({*digest}));
        });
        take_from(core_.paths.trees(), [&](const std::string& name, const Leases::Held& held) {
            const auto digest = digest_of_name(name, kTreeSuffix);
            return digest && (held.trees.contains({*digest}) || core_.index->has_tree({*digest}));
        });
        return bytes_;
    }

private:
    template <class IsKept>
    void take_from(const std::string& folder, IsKept&& is_kept) {
        for (const std::string& name : list_folder(folder)) {
            const std::string path = folder + "/" + name;
            core_.leases.with_all([&](const Leases::Held& held, auto&&) {
                if (is_kept(name, held)) return;
                bytes_ += bytes_of_file(path);
                if (is_dry_run_) return;
                pack_number_of(name) ? remove_pack_file(path) : remove_file(path);
            });
        }
    }

    StoreCore& core_;
    const bool is_dry_run_;
    std::set<std::uint32_t> listed_;
    std::uint64_t bytes_ = 0;
};

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
    const std::vector<std::uint32_t> committed = core.index->pack_numbers();
    if (core.chunks->indexed_packs() != committed) core.chunks->rebuild(committed);
}

void agree_chunk_index_somehow(StoreCore& core) {
    try {
        return agree_chunk_index(core);
    } catch (const Error& error) {
        if (error.code() != Errc::no_space && error.code() != Errc::quota) throw;
    }
    {
        const std::lock_guard publishing(core.publishing);
        const std::vector<std::uint32_t> committed = core.index->pack_numbers();
        const std::vector<std::uint32_t> listed = core.chunks->indexed_packs();
        std::vector<std::uint32_t> missing;
        std::vector<std::uint32_t> gone;
        std::ranges::set_difference(committed, listed, std::back_inserter(missing));
        std::ranges::set_difference(listed, committed, std::back_inserter(gone));
        for (const std::uint32_t number : missing) {
            const FinishedPack pack{.number = number, .chunks = read_pack_table(core.paths.packs(), number)};
            core.chunks->replace_packs(&pack, {});
        }
        core.chunks->replace_packs(nullptr, gone);
    }
    remove_strays(core);
}

std::uint64_t remove_dead_packs(StoreCore& core, const std::vector<std::uint32_t>& packs) {
    std::uint64_t bytes = 0;
    for (const std::uint32_t number : packs) {
        const std::string path = pack_path(core.paths.packs(), number);
        core.leases.with_all([&](const Leases::Held& held, auto&&) {
            if (held.packs.contains(number) || core.index->has_pack(number)) return;
            bytes += bytes_of_file(path);
            remove_pack_file(path);
        });
    }
    return bytes;
}

std::uint64_t remove_strays(StoreCore& core) {
    return Strays(core, false).take();
}

std::uint64_t stray_bytes(StoreCore& core) {
    return Strays(core, true).take();
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
