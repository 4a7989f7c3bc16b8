#include "power/recorded_disk.h"

#include "store/file.h"

#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <thread>

namespace lamina::test {

namespace {

constexpr std::size_t kPageBytes = 4096;

bool succeeds(const std::string& command) {
    return std::system(("PATH=$PATH:/sbin:/usr/sbin; " + command + " >/dev/null 2>&1").c_str()) == 0;
}

void run(const std::string& command) {
    if (!succeeds(command)) throw std::runtime_error("failed: " + command);
}

void unmount(const std::string& path) {
    // Something may look at every new mount for a moment.
    if (!succeeds("umount " + path) && !succeeds("sleep 0.2; umount " + path)) run("umount -l " + path);
}

/// Pages of zeros are not written.
void write_sparse(const std::string& path, const std::vector<std::byte>& bytes) {
    static constexpr std::byte kZeros[kPageBytes] = {};
    store::remove_file(path);
    store::File file = store::File::create(path);
    file.truncate(bytes.size());
    for (std::size_t at = 0; at < bytes.size(); at += kPageBytes) {
        const auto page = std::span(bytes).subspan(at, std::min(kPageBytes, bytes.size() - at));
        if (std::memcmp(page.data(), kZeros, page.size()) != 0) file.write_at(at, page);
    }
}

}  // namespace

const RecordedDisk::Kind& RecordedDisk::ext4() {
    static const Kind kind{"ext4", "mkfs.ext4 -q -F -E nodiscard", "commit=600,noauto_da_alloc", "commit=600", 24 << 20,
                           512};
    return kind;
}

const RecordedDisk::Kind& RecordedDisk::xfs() {
    static const Kind kind{"xfs", "mkfs.xfs -q -f -K", "noatime", "nouuid", 320 << 20, 512};
    return kind;
}

const RecordedDisk::Kind& RecordedDisk::btrfs() {
    static const Kind kind{"btrfs", "mkfs.btrfs -q -f -K -m single", "commit=600", "commit=600", 128 << 20, 4096};
    return kind;
}

std::string RecordedDisk::why_not(const Kind& kind) {
    if (::geteuid() != 0) return "needs root";
    if (!store::exists("/dev/fuse")) return "needs /dev/fuse";
    if (!succeeds("which mkfs." + kind.name)) return "needs mkfs." + kind.name;
    if (!succeeds("losetup -f")) return "needs loop devices";
    return "";
}

RecordedDisk::RecordedDisk(const Kind& kind) : kind_(kind), path_(folder_ / "mount"), server_path_(folder_ / "server") {
    store::make_folder(path_);
    store::make_folder(server_path_);
    const std::string size = std::to_string(kind.size_bytes);
    server_ = ::fork();
    if (server_ < 0) throw std::runtime_error("fork");
    if (server_ == 0) {
        ::execl(LAMINA_DISK_SERVER, "disk_server", folder_.path().c_str(), server_path_.c_str(), size.c_str(), nullptr);
        ::_exit(127);
    }
    const std::string disk = server_path_ + "/disk";
    while (!store::exists(disk)) {
        int status = 0;
        if (::waitpid(server_, &status, WNOHANG) != 0) throw std::runtime_error("the disk server ended");
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    run(kind.make + " " + disk);
    run("mount -t " + kind.name + " -o loop," + kind.mount_options + " " + disk + " " + path_);
}

RecordedDisk::~RecordedDisk() {
    if (server_ < 0) return;
    succeeds("umount " + path_ + " || umount -l " + path_);
    if (!succeeds("umount " + server_path_)) {  // A loop device lets go of its file a moment after its last user.
        succeeds("sleep 0.5; umount " + server_path_ + " || umount -l " + server_path_);
    }
    ::waitpid(server_, nullptr, 0);
}

std::uint64_t RecordedDisk::position() const {
    return store::file_size(folder_ / "events");
}

PowerCuts::PowerCuts(const RecordedDisk& disk)
    : disk_(disk), bytes_(store::read_file(disk.folder_ / "events", 1ULL << 34)) {
    for (std::size_t at = 0; at + sizeof(DiskEvent) <= bytes_.size();) {
        Placed placed;
        std::memcpy(&placed.event, bytes_.data() + at, sizeof placed.event);
        at += sizeof placed.event;
        if (placed.event.kind == DiskEvent::kWrite) {
            placed.data = std::span(bytes_).subspan(at, placed.event.size_bytes);
            at += placed.event.size_bytes;
        }
        placed.end_position = at;
        events_.push_back(placed);
    }
}

PowerCuts::~PowerCuts() = default;

void PowerCuts::apply(std::vector<std::byte>& disk, const Placed& placed) const {
    const auto at = disk.begin() + static_cast<std::ptrdiff_t>(placed.event.offset_bytes);
    if (placed.event.kind == DiskEvent::kWrite) std::ranges::copy(placed.data, at);
    if (placed.event.kind == DiskEvent::kDiscard) {
        std::fill_n(at, static_cast<std::ptrdiff_t>(placed.event.size_bytes), std::byte{0});
    }
}

/// Of each write all sectors, some, or none; in an order that is drawn.
void PowerCuts::apply_some(std::vector<std::byte>& disk, std::span<const Placed> placed, std::mt19937& random) const {
    std::vector<const Placed*> order;
    for (const Placed& one : placed) order.push_back(&one);
    std::ranges::shuffle(order, random);
    const unsigned keeps = random() % 5;  // Of four: so nothing and everything come too.
    for (const Placed* const one : order) {
        const bool is_torn = random() % 8 == 0;
        if (!is_torn && random() % 4 >= keeps) continue;
        if (!is_torn || one->event.kind != DiskEvent::kWrite) {
            apply(disk, *one);
            continue;
        }
        for (std::size_t at = 0; at < one->data.size(); at += disk_.kind_.sector_bytes) {
            if (random() % 2 == 0) continue;
            const auto sector = one->data.subspan(at, std::min(disk_.kind_.sector_bytes, one->data.size() - at));
            std::ranges::copy(sector, disk.begin() + static_cast<std::ptrdiff_t>(one->event.offset_bytes + at));
        }
    }
}

void PowerCuts::mount_and_look(const std::vector<std::byte>& disk, std::uint64_t position, const Look& look) const {
    const TempDir folder("/dev/shm");
    const std::string path = folder / "mount";
    store::make_folder(path);
    write_sparse(folder / "image", disk);
    run("mount -t " + disk_.kind_.name + " -o loop," + disk_.kind_.again_options + " " + folder.path() + "/image " +
        path);
    try {
        look(path, position);
    } catch (...) {  // A failed check of the test leaves this way too, and the mount may not stay.
        unmount(path);
        throw;
    }
    unmount(path);
}

std::size_t PowerCuts::at_flushes(std::uint64_t from_position, std::size_t every, const Look& look) {
    std::vector<std::byte> disk(disk_.kind_.size_bytes);
    std::size_t flushes = 0;
    std::size_t made = 0;
    for (const Placed& placed : events_) {
        apply(disk, placed);
        if (placed.event.kind != DiskEvent::kFlush || placed.end_position <= from_position) continue;
        if (flushes++ % every != 0) continue;
        mount_and_look(disk, placed.end_position, look);
        ++made;
    }
    return made;
}

/// Events after which the power may be cut, in order.
std::vector<std::size_t> PowerCuts::random_ends(std::uint64_t from_position, std::size_t count,
                                                std::mt19937& random) const {
    const auto first =
        std::ranges::find_if(events_, [&](const Placed& one) { return one.end_position > from_position; });
    const auto first_index = static_cast<std::size_t>(first - events_.begin());
    std::vector<std::size_t> ends;
    if (first_index == events_.size()) return ends;
    for (std::size_t i = 0; i < count; ++i) ends.push_back(first_index + random() % (events_.size() - first_index));
    std::ranges::sort(ends);
    return ends;
}

std::size_t PowerCuts::at_instants(std::uint64_t from_position, std::size_t count, std::uint32_t seed,
                                   const Look& look) {
    std::mt19937 random(seed);
    std::vector<std::byte> disk(disk_.kind_.size_bytes);
    std::size_t applied = 0;
    const std::vector<std::size_t> ends = random_ends(from_position, count, random);
    for (const std::size_t end : ends) {
        for (; applied <= end; ++applied) apply(disk, events_[applied]);
        mount_and_look(disk, events_[end].end_position, look);
    }
    return ends.size();
}

std::size_t PowerCuts::at_random(std::uint64_t from_position, std::size_t count, std::uint32_t seed, const Look& look) {
    std::mt19937 random(seed);
    const std::vector<std::size_t> ends = random_ends(from_position, count, random);
    std::vector<std::byte> durable(disk_.kind_.size_bytes);
    std::size_t durable_end = 0;
    for (const std::size_t end : ends) {
        std::size_t flush = end + 1;  // Behind the last flush up to the cut.
        while (flush > durable_end && events_[flush - 1].event.kind != DiskEvent::kFlush) --flush;
        for (; durable_end < flush; ++durable_end) apply(durable, events_[durable_end]);
        std::vector<std::byte> disk = durable;
        apply_some(disk, std::span(events_).subspan(durable_end, end + 1 - durable_end), random);
        mount_and_look(disk, events_[end].end_position, look);
    }
    return ends.size();
}

}  // namespace lamina::test
