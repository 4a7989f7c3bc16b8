#pragma once

#include "store/digest.h"

#include <chrono>
#include <cstddef>
#include <map>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <unordered_set>
#include <vector>

namespace lamina::store {

/// Which chunks programs want first when an image is mounted, in the order in which they wanted them (FORMAT.md, "Start
/// trace").
struct StartTrace {
    static constexpr std::size_t kMaxChunks = 65'536;

    std::string repository;  ///< Of the image, without tag: other versions of it have the same one. May be empty.
    std::vector<ChunkId> chunks;

    std::string write() const;
    static StartTrace parse(std::span<const std::byte> file);  ///< malformed.
    /// Puts behind its chunks those of another run that it lacks. False: none.
    bool merge(const std::vector<ChunkId>& run);
};

/// The traces of a store's images: files <root>/traces/<config digest hex>.trace. What mounts want is noted in memory,
/// and written when there is enough of it, or by flush(). Thread-safe.
class StartTraces {
public:
    using Clock = std::chrono::steady_clock;
    static constexpr auto kStart = std::chrono::seconds(60);  ///< From the first chunk that a mount wants.
    static constexpr std::size_t kMaxTraces = 256;            ///< The one that was written longest ago goes first.

    explicit StartTraces(std::string folder) : folder_(std::move(folder)) {}
    struct Image {
        BlobDigest config;
        std::string repository;
    };
    void note(const std::string& mount_id, const Image& image, const std::vector<ChunkId>& chunks,
              Clock::time_point now);
    /// A mount begins, or has ended: its next chunk is its first.
    void begin(const std::string& mount_id);
    void flush();  ///< Throws nothing: a trace that cannot be written is lost.

    std::optional<StartTrace> find(const BlobDigest& config) const;
    /// The image's own; else, of another version of it, what `is_known` says that the image has, too.
    template <class IsKnown>
    std::optional<StartTrace> find_for(const Image& image, const IsKnown& is_known) const {
        if (auto own = find(image.config)) return own;
        std::optional<StartTrace> best;
        for (StartTrace& other : of_repository(image.repository)) {
            std::erase_if(other.chunks, [&](const ChunkId& chunk) { return !is_known(chunk); });
            if (!other.chunks.empty() && (!best || other.chunks.size() > best->chunks.size())) best = std::move(other);
        }
        return best;
    }
    void add(const Image& image, const std::vector<ChunkId>& chunks);  ///< Merges and writes.
    /// The same of a run that is known whole: its order counts, and what is known of others comes behind.
    void add_run(const Image& image, const std::vector<ChunkId>& chunks);

private:
    struct Run {
        Image image;
        Clock::time_point begin{};
        std::vector<ChunkId> unwritten;
        std::unordered_set<ChunkId> seen;
    };
    std::string path(const BlobDigest& config) const { return folder_ + "/" + config.digest.hex() + ".trace"; }
    void write(const Image& image, const StartTrace& trace) const;
    std::vector<StartTrace> of_repository(const std::string& repository) const;
    void remove_oldest() const;

    const std::string folder_;
    std::mutex writing_;  // Held across the I/O of add(). Outermost.
    std::mutex mutex_;    // Guards what follows; a leaf.
    std::map<std::string, Run> runs_;
};

}  // namespace lamina::store
