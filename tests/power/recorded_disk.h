#pragma once

#include "power/disk_events.h"
#include "support/temp_dir.h"

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <random>
#include <span>
#include <string>
#include <vector>

namespace lamina::test {

/// A file system on a disk that remembers every write, discard and flush. A disk may lose, tear and reorder whatever
/// was written since the last flush when its power is cut. Needs root, /dev/fuse and loop devices.
class RecordedDisk {
public:
    struct Kind {
        std::string name;  ///< "ext4"
        std::string make;  ///< The command that makes one in a file, whose name is appended.
        std::string
            mount_options;  ///< So that nothing is written back before its time, or kept better than POSIX asks.
        std::string again_options;  ///< For another disk of the same name, while this one is mounted.
        std::uint64_t size_bytes;
        std::size_t sector_bytes;  ///< What it takes for granted that a disk writes as a whole.
    };
    static const Kind& ext4();
    static const Kind& xfs();
    static const Kind& btrfs();

    /// Why there can be none; empty: there can.
    static std::string why_not(const Kind& kind);
    explicit RecordedDisk(const Kind& kind);
    ~RecordedDisk();
    RecordedDisk(const RecordedDisk&) = delete;
    RecordedDisk& operator=(const RecordedDisk&) = delete;

    const std::string& path() const noexcept { return path_; }  ///< Where it is mounted.
    /// How much was asked of it: what was written before belongs to a cut at this point, or later.
    std::uint64_t position() const;

private:
    const Kind& kind_;
    TempDir folder_{"/dev/shm"};
    std::string path_;
    std::string server_path_;
    pid_t server_ = -1;
    friend class PowerCuts;
};

/// The disks that a cut of the power can have left, one after the other.
class PowerCuts {
public:
    explicit PowerCuts(const RecordedDisk& disk);
    ~PowerCuts();

    /// `look(path, position)` is called with each disk mounted; all that was acknowledged at `position` must be there.
    /// Returns how many were made.
    using Look = std::function<void(const std::string& path, std::uint64_t position)>;
    /// One for each flush: everything before it, and nothing after it. Every nth, from the first position on.
    std::size_t at_flushes(std::uint64_t from_position, std::size_t every, const Look& look);
    /// `count` of them: everything that was written up to a random point, as a copy of the disk at that instant has it.
    std::size_t at_instants(std::uint64_t from_position, std::size_t count, std::uint32_t seed, const Look& look);
    /// `count` of them: everything before a flush, and of what was written up to some later point without one any part,
    /// by sectors, in any order.
    std::size_t at_random(std::uint64_t from_position, std::size_t count, std::uint32_t seed, const Look& look);

private:
    struct Placed {
        DiskEvent event;
        std::span<const std::byte> data;
        std::uint64_t end_position = 0;
    };
    std::vector<std::size_t> random_ends(std::uint64_t from_position, std::size_t count, std::mt19937& random) const;
    void apply(std::vector<std::byte>& disk, const Placed& placed) const;
    void apply_some(std::vector<std::byte>& disk, std::span<const Placed> placed, std::mt19937& random) const;
    void mount_and_look(const std::vector<std::byte>& disk, std::uint64_t position, const Look& look) const;

    const RecordedDisk& disk_;
    std::vector<std::byte> bytes_;
    std::vector<Placed> events_;
};

}  // namespace lamina::test
