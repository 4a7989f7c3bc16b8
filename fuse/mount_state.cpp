#include "fuse/mount_state.h"

#include "fuse/change_walk.h"
#include "fuse/checkpoint.h"
#include "store/error.h"

#include <sys/statvfs.h>

#include <algorithm>
#include <utility>

/// A mount folder holds a checkpoint and the log whose generation it names, or no checkpoint and log.1, or nothing yet.
/// Anything else of these names is what a kill left of a checkpoint that was under way: one file too many, never one
/// too few, because each file is removed only when the next pair is durable.
namespace lamina::unionfs {

namespace {

std::string log_path(const std::string& folder, std::uint64_t generation) {
    return folder + "/log." + std::to_string(generation);
}

bool is_log_name(const std::string& name) {
    return name.starts_with("log.") && name.find_first_not_of("0123456789", 4) == name.npos && name.size() > 4;
}

void remove_leftovers(const std::string& folder, std::uint64_t generation) {
    const std::string current = "log." + std::to_string(generation);
    for (const std::string& name : store::list_folder(folder)) {
        const bool is_leftover = name == "checkpoint.tmp" || (is_log_name(name) && name != current);
        if (is_leftover) store::remove_file(folder + "/" + name);
    }
}

/// Without its checkpoint a log is not the whole story; without its log neither is a checkpoint.
void check_pair(const std::string& folder, const std::optional<CheckpointRead>& checkpoint, bool has_log) {
    if (checkpoint) {
        if (!has_log) {
            throw store::Error(store::Errc::corrupt, log_path(folder, checkpoint->generation) +
                                                         ": missing, and the checkpoint says that changes are in it");
        }
        return;
    }
    const auto names = store::list_folder(folder);
    const bool has_later = std::any_of(names.begin(), names.end(),
                                       [](const std::string& name) { return is_log_name(name) && name != "log.1"; });
    if (has_later && !has_log) {
        throw store::Error(store::Errc::corrupt, folder + "/checkpoint: missing, and a log that continues it is there");
    }
}

}  // namespace

ExtentReader::ExtentReader(const std::string& folder) : folder_(folder) {
    const std::string path = folder_ + "/extents";
    if (!store::exists(path)) return;
    fd_ = store::open_read(path);
    size_bytes_ = store::file_size(path);
}

Result<void> ExtentReader::load(std::uint64_t extent_offset_bytes, std::span<std::byte> out) const {
    try {
        if (!fd_) return fail(EIO);
        store::read_exact(fd_.get(), extent_offset_bytes, out, folder_ + "/extents");
        return {};
    } catch (const store::Error& error) {
        return std::unexpected(errno_for(error.code()));
    }
}

Keeper::Usage ExtentReader::usage() const {
    Usage usage{.extent_bytes = size_bytes_};
    struct statvfs status {};
    if (::statvfs(folder_.c_str(), &status) == 0) usage.total_bytes = status.f_blocks * status.f_frsize;
    return usage;
}

MountState::MountState(std::unique_ptr<Arena> arena, const View& view)
    : arena_(std::move(arena)), changes_(std::make_unique<ChangeSet>(*arena_, view)) {}

std::unique_ptr<MountState> MountState::make_new(const View& view) {
    auto arena = Arena::create();
    if (!arena) store::throw_errno(std::to_underlying(arena.error()), "memory for the changes of a mount");
    return std::unique_ptr<MountState>(new MountState(std::move(*arena), view));
}

MountState::~MountState() = default;

Keeper& MountState::keeper() noexcept {
    if (log_keeper_) return *log_keeper_;
    return *extent_reader_;
}

std::unique_ptr<MountState> MountState::open(const std::string& folder, const store::TreeDigest& tree, const View& view,
                                             const Options& options) {
    std::unique_ptr<MountState> state = make_new(view);
    LogStart start = state->replay(folder, tree, options, std::nullopt);
    state->mark_space(folder, start.space);
    start.space.finish_marking();
    if (options.is_read_only) {
        state->extent_reader_ = std::make_unique<ExtentReader>(folder);
    } else {
        remove_leftovers(folder, start.generation);
        state->start_keeper(std::move(start), options.log);
    }
    return state;
}

std::unique_ptr<MountState> MountState::resume(std::unique_ptr<Arena> arena, const std::string& folder,
                                               const store::TreeDigest& tree, const View& view,
                                               const Options& options) {
    std::unique_ptr<MountState> state(new MountState(std::move(arena), view));
    if (options.is_read_only) {
        state->extent_reader_ = std::make_unique<ExtentReader>(folder);
        return state;
    }
    LogStart start{.folder = folder, .tree = tree};
    start.boot = options.boot ? *options.boot : log_format::current_boot();
    start.scan.is_absent = true;
    const std::uint64_t file_bytes = state->mark_space(folder, start.space);
    start.held = start.space.finish_holding(file_bytes);
    state->start_keeper(std::move(start), options.log);
    remove_leftovers(folder, state->log_keeper_->generation());
    return state;
}

void MountState::start_keeper(LogStart start, const LogOptions& options) {
    const auto emit_state = [changes = changes_.get()](const auto& emit) { changes->checkpoint(emit); };
    log_keeper_ = std::make_unique<LogKeeper>(std::move(start), *arena_, emit_state, options);
}

std::unique_ptr<MountState> MountState::open_cut(const std::string& folder, const store::TreeDigest& tree,
                                                 const View& view, const LogKeeper::Cut& cut) {
    std::unique_ptr<MountState> state = make_new(view);
    LogStart start = state->replay(folder, tree, {.is_read_only = true, .log = {}, .boot = {}}, cut);
    state->mark_space(folder, start.space);
    state->extent_reader_ = std::make_unique<ExtentReader>(folder);
    return state;
}

LogStart MountState::replay(const std::string& folder, const store::TreeDigest& tree, const Options& options,
                            const std::optional<LogKeeper::Cut>& cut) {
    LogStart start{.folder = folder, .tree = tree};
    start.boot = options.boot ? *options.boot : log_format::current_boot();
    const ApplyChange apply = [this](const change::Change& change) -> Result<void> {
        if (const auto reserved = changes_->reserve(change); !reserved) return reserved;
        return changes_->apply(change);
    };
    const auto checkpoint = read_checkpoint(folder + "/checkpoint", tree, apply);
    if (checkpoint) {
        start.generation = checkpoint->generation;
        start.checkpoint_bytes = checkpoint->size_bytes;
    }
    if (cut && cut->generation != start.generation) {
        throw store::Error(store::Errc::corrupt, folder + ": the log of the cut is not there");
    }
    const LogSource source{.path = log_path(folder, start.generation), .tree = tree, .generation = start.generation};
    const bool is_nothing = cut && cut->log_bytes == 0;  // A mount that has changed nothing yet.
    start.scan.is_absent = true;
    if (!is_nothing) {
        start.scan = scan_log(source, start.boot, cut ? std::optional(cut->log_bytes) : std::nullopt);
        check_pair(folder, checkpoint, !start.scan.is_absent);
    }
    replay_log(source, start.scan, apply);
    changes_->drop_unnamed();
    return start;
}

/// Space that the extents of the state take; each must have its own. Returns the size of the extent file.
std::uint64_t MountState::mark_space(const std::string& folder, SpaceMap& space) const {
    const std::uint64_t file_bytes = ExtentReader(folder).size_bytes();
    for_each_extent(*changes_, [&](const ChangedExtent& extent) {
        if (extent.is_hole) return;
        const bool is_inside =
            extent.size_bytes <= file_bytes && extent.extent_offset_bytes <= file_bytes - extent.size_bytes;
        if (is_inside && space.mark_used({extent.extent_offset_bytes, extent.size_bytes})) return;
        throw store::Error(store::Errc::corrupt, folder + "/extents: the data of inode " + std::to_string(extent.node) +
                                                     (is_inside ? " overlaps other data" : " lies behind its end"));
    });
    return file_bytes;
}

LogKeeper::Cut MountState::begin_cut() {
    if (!log_keeper_) throw store::Error(store::Errc::unsupported, "a read-only mount changes nothing");
    const auto cut = log_keeper_->begin_cut();
    if (!cut) store::throw_errno(std::to_underlying(cut.error()), "a cut of the log");
    return *cut;
}

void MountState::end_cut() {
    if (log_keeper_) log_keeper_->end_cut();
}

void MountState::close() {
    if (!log_keeper_) return;
    const auto closed = log_keeper_->close();
    if (!closed) store::throw_errno(std::to_underlying(closed.error()), "the end of a mount's log");
}

}  // namespace lamina::unionfs
