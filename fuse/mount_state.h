#pragma once

#include "fuse/arena.h"
#include "fuse/change_set.h"
#include "fuse/log_keeper.h"
#include "fuse/view.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

namespace lamina::unionfs {

/// Serves the bytes of a mount's changes and refuses every change: of a read-only mount, or of a cut.
class ExtentReader : public Keeper {
public:
    explicit ExtentReader(const std::string& folder);  ///< A missing extent file is an empty one.
    std::uint64_t size_bytes() const noexcept { return size_bytes_; }

    Result<void> reserve(std::uint64_t, std::uint64_t) override { return fail(EROFS); }
    Result<std::uint64_t> place(std::span<const std::byte>, std::uint64_t) override { return fail(EROFS); }
    Result<void> overwrite(std::uint64_t, std::span<const std::byte>) override { return fail(EROFS); }
    bool may_overwrite(std::uint64_t, std::uint64_t) const override { return false; }
    Result<void> load(std::uint64_t extent_offset_bytes, std::span<std::byte> out) const override;
    void release(std::uint64_t, std::uint64_t) override {}
    void append(const change::Change&) noexcept override {}
    Result<void> sync() override { return {}; }
    Usage usage() const override;

private:
    std::string folder_;
    store::UniqueFd fd_;
    std::uint64_t size_bytes_ = 0;
};

/// What a mount changed, read back from its folder (checkpoint, then log), and the keeper that goes on with it.
///
/// Throws store::Error: malformed (not ours, of another version, of another image), corrupt (damaged; a torn end of the
/// log is none). After a power cut the state is what was synced. The view must outlive it.
class MountState {
public:
    struct Options {
        bool is_read_only = false;  ///< Writes nothing. The keeper then refuses changes.
        LogOptions log;
        std::optional<log_format::BootId> boot;  ///< For tests: instead of the machine's.
    };
    /// Of a mount that this process has locked (<folder>/lock, exclusively; shared is enough for a read-only one).
    /// Starts the keeper's timer thread.
    static std::unique_ptr<MountState> open(const std::string& folder, const store::TreeDigest& tree, const View& view,
                                            const Options& options);
    /// In an arena that a killed server of the mount has left (Arena::attach): goes on where that one was.
    static std::unique_ptr<MountState> resume(std::unique_ptr<Arena> arena, const std::string& folder,
                                              const store::TreeDigest& tree, const View& view, const Options& options);
    /// As of a cut that the mount's server holds (LogKeeper::begin_cut).
    static std::unique_ptr<MountState> open_cut(const std::string& folder, const store::TreeDigest& tree,
                                                const View& view, const LogKeeper::Cut& cut);
    ~MountState();
    MountState(const MountState&) = delete;
    MountState& operator=(const MountState&) = delete;

    Arena& arena() noexcept { return *arena_; }
    ChangeSet& changes() noexcept { return *changes_; }
    const ChangeSet& changes() const noexcept { return *changes_; }
    Keeper& keeper() noexcept;
    LogKeeper* log_keeper() noexcept { return log_keeper_.get(); }  ///< Null when read-only.

    /// See LogKeeper. Throw; a read-only mount has no cut to take: unsupported.
    LogKeeper::Cut begin_cut();
    void end_cut();
    void close();  ///< A clean end: no more changes come.

private:
    MountState(std::unique_ptr<Arena> arena, const View& view);
    static std::unique_ptr<MountState> make_new(const View& view);
    LogStart replay(const std::string& folder, const store::TreeDigest& tree, const Options& options,
                    const std::optional<LogKeeper::Cut>& cut);
    std::uint64_t mark_space(const std::string& folder, SpaceMap& space) const;
    void start_keeper(LogStart start, const LogOptions& options);

    std::unique_ptr<Arena> arena_;
    std::unique_ptr<ChangeSet> changes_;
    std::unique_ptr<ExtentReader> extent_reader_;
    std::unique_ptr<LogKeeper> log_keeper_;
};

}  // namespace lamina::unionfs
