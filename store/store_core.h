#pragma once

#include "store/chunk_store.h"
#include "store/fetch_log.h"
#include "store/file.h"
#include "store/http_client.h"
#include "store/index.h"
#include "store/lazy_fetcher.h"
#include "store/leases.h"
#include "store/read_view.h"
#include "store/start_trace.h"

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lamina::store {

inline constexpr const char* kRecipeSuffix = ".recipe";
inline constexpr const char* kTreeSuffix = ".tree";
inline constexpr const char* kLazySuffix = ".lazy";
inline constexpr const char* kBlobSuffix = ".blob";
inline constexpr const char* kQuarantineSuffix = ".quarantine";

/// Where things lie below a store's root (FORMAT.md, "Store folder").
struct StorePaths {
    std::string root;
    std::string index() const { return root + "/index.sqlite"; }
    std::string packs() const { return root + "/packs"; }
    std::string layers() const { return root + "/layers"; }
    std::string trees() const { return root + "/trees"; }
    std::string mounts() const { return root + "/mounts"; }
    std::string staging() const { return root + "/staging"; }
    std::string recipe(const DiffId& layer) const { return layers() + "/" + layer.digest.hex() + kRecipeSuffix; }
    std::string lazy(const DiffId& layer) const { return layers() + "/" + layer.digest.hex() + kLazySuffix; }
    std::string blob(const DiffId& layer) const { return layers() + "/" + layer.digest.hex() + kBlobSuffix; }
    std::string quarantined(const DiffId& layer) const {
        return layers() + "/" + layer.digest.hex() + kQuarantineSuffix;
    }
    std::string traces() const { return root + "/traces"; }
    std::string fetches() const { return root + "/fetches"; }
    std::string tree(const TreeDigest& tree) const { return trees() + "/" + tree.digest.hex() + kTreeSuffix; }
    std::string mount(const std::string& id) const { return mounts() + "/" + id; }
};

/// What the jobs of one open store share; the store's own parts (importer.h, exporter.h, gc.h, verify.h, usage.h) work
/// on it. Thread-safe as each member says.
struct StoreCore {
    explicit StoreCore(StorePaths of_store) : paths(std::move(of_store)) {}

    const StorePaths paths;
    std::unique_ptr<Index> index;
    std::unique_ptr<ChunkStore> chunks;
    Leases leases;
    /// Held from an index transaction that adds or removes packs until the chunk index says the same. Taken before the
    /// leases' lock.
    std::mutex publishing;
    std::timed_mutex collecting;  ///< One gc or verify at a time. Taken before `publishing`.
    std::mutex mounting;  ///< Makes "is this image mounted?" and what follows from the answer one step. Outermost.
    std::atomic<std::uint64_t> next_job{1};
    /// For registries; one, so that its limits count for all jobs together. Made when it is first needed.
    HttpClient& http() {
        std::call_once(http_made_, [this] { http_ = std::make_unique<HttpClient>(); });
        return *http_;
    }

private:
    std::once_flag http_made_;
    std::unique_ptr<HttpClient> http_;

public:
    StartTraces traces{paths.traces()};
    FetchLog fetches{paths.fetches()};
    LazyFetcher lazy{*this};  // Last: its threads use all the rest.
};

/// The number of a pack file, by its name; nullopt: another file of packs/.
std::optional<std::uint32_t> pack_number_of(std::string_view file_name);

/// A job's folder in staging; goes with it.
class JobFolder {
public:
    explicit JobFolder(StoreCore& core);
    ~JobFolder();
    JobFolder(const JobFolder&) = delete;
    JobFolder& operator=(const JobFolder&) = delete;
    const std::string& path() const noexcept { return path_; }

private:
    std::string path_;
};

/// Rebuilds the chunk index when it does not cover exactly the committed packs: after a crash, or a job that failed
/// between its index transaction and its segment.
void agree_chunk_index(StoreCore& core);
/// The same on a disk that may be full: where there is no room for a new index, the old one is patched, and what no row
/// names goes.
void agree_chunk_index_somehow(StoreCore& core);

/// Removes pack, recipe and tree files that no committed row names, no lease keeps, and, for packs, the published chunk
/// index does not name: readers may still be sent there. Returns their bytes. The space of a
/// pack is free at once, also when a reader has it open: he finds it cut, and looks elsewhere (chunk_store.h).
std::uint64_t remove_strays(StoreCore& core);
std::uint64_t stray_bytes(StoreCore& core);  ///< What remove_strays() would return.
/// Removes files of packs that have no row, and of which nobody needs a chunk, before the chunk index says so.
std::uint64_t remove_dead_packs(StoreCore& core, const std::vector<std::uint32_t>& packs);

/// The bases of mounts/*: what is mounted, or was and has kept its changes. Throws corrupt, naming it, when one cannot
/// be read: nobody then knows what it needs.
struct KeptMount {
    std::string id;
    MountBase base;
};
std::vector<KeptMount> kept_mounts(const StoreCore& core);

/// The images that `text` means, as ImageReference says: exactly one, else not_found or malformed (ambiguous).
struct FoundImage {
    ImageRow row;
    std::optional<ImageName> by_name;  ///< nullopt: by digest.
};
FoundImage find_image(StoreCore& core, const std::string& text);

/// The same, and its layers and tree are kept by `lease`.
FoundImage keep_image(StoreCore& core, Leases::Lease& lease, const std::string& text);

/// "debian:12", or its config digest when it has no name: for messages.
std::string display_name(const ImageRow& image);

}  // namespace lamina::store
