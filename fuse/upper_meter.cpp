// Each call that changes the upper looks at what it has touched, and puts that into the account in place of what was
// there of it before, so that the account is right whatever the keeper is doing. What cannot be known before (how many
// blocks a new folder takes) is measured after, where the thing is still in the work folder, and taken back.
#include "fuse/upper_meter.h"

#include "fuse/contain.h"

#include <dirent.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <set>
#include <utility>
#include <vector>

namespace lamina::unionfs {
namespace {

constexpr std::uint64_t kBlockBytes = 4096;

// Of the thread that makes a change: one meter at a time, and none elsewhere.
thread_local UpperMeter* t_meter = nullptr;

std::uint64_t bytes_of(const struct statx& status) {
    const std::uint64_t on_disk = status.stx_blocks * 512;
    return S_ISREG(status.stx_mode) ? std::min(on_disk, UpperMeter::in_blocks(status.stx_size)) : on_disk;
}

}  // namespace

/// Goes through folders. One descriptor for each level.
class UpperMeter::Search {
public:
    explicit Search(UpperMeter& meter) : meter_(meter) {}
    Result<void> add_all(const Spot& root) {
        const auto status = status_of(root);
        if (!status) return std::unexpected(status.error());
        meter_.measure(*status);
        if (const auto opened = open_folder(root); !opened) return opened;
        while (!levels_.empty()) {
            if (levels_.back().names.empty()) {
                levels_.pop_back();
                continue;
            }
            const Spot at{levels_.back().folder, std::move(levels_.back().names.back())};
            levels_.back().names.pop_back();
            if (const auto added = add(at); !added) return added;
        }
        return {};
    }

private:
    struct Level {
        std::shared_ptr<const store::UniqueFd> folder;
        std::vector<std::string> names;
    };

    Result<void> add(const Spot& at) {
        auto status = status_of(at);
        if (!status && status.error() == Errno{EACCES})
            status = with_permission(UpperInode::open({at.folder, "."}), [&] { return status_of(at); });
        if (!status) return std::unexpected(status.error());
        const bool is_folder = S_ISDIR(status->stx_mode);
        if (!is_folder && status->stx_nlink > 1 && !seen_.insert(status->stx_ino).second) return {};
        meter_.measure(*status);
        ++meter_.usage_.inodes;
        return is_folder ? open_folder(at) : Result<void>{};
    }

    Result<void> open_folder(const Spot& at) {
        auto opened = open_at(at, O_RDONLY | O_DIRECTORY);
        if (!opened && opened.error() == Errno{EACCES})
            opened = with_permission(UpperInode::open(at), [&] { return open_at(at, O_RDONLY | O_DIRECTORY); });
        if (!opened) return std::unexpected(opened.error());
        Level level{.folder = std::make_shared<const store::UniqueFd>(std::move(*opened)), .names = {}};
        store::UniqueFd listed(::fcntl(level.folder->get(), F_DUPFD_CLOEXEC, 3));
        const std::unique_ptr<DIR, int (*)(DIR*)> listing(::fdopendir(listed.get()), ::closedir);
        if (!listing) return fail(errno);
        (void)listed.release();
        errno = 0;
        while (const dirent* const entry = ::readdir(listing.get())) {
            const std::string name = entry->d_name;
            if (name != "." && name != "..") level.names.push_back(name);
        }
        if (errno != 0) return fail(errno);
        levels_.push_back(std::move(level));
        return {};
    }

    UpperMeter& meter_;
    std::vector<Level> levels_;
    std::set<std::uint64_t> seen_;  ///< With more names than one. All lie on one file system.
};

Result<std::unique_ptr<UpperMeter>> UpperMeter::look_through(const Folders& folders) {
    std::unique_ptr<UpperMeter> meter(new UpperMeter);
    Search search(*meter);
    for (const Spot* const root : {&folders.upper, &folders.work, &folders.index})
        if (const auto added = search.add_all(*root); !added) return std::unexpected(added.error());
    return meter;
}

std::uint64_t UpperMeter::in_blocks(std::uint64_t size_bytes) {
    return (size_bytes + kBlockBytes - 1) / kBlockBytes * kBlockBytes;
}

UpperMeter* UpperMeter::counting() {
    return t_meter && t_meter->whole_files_ == 0 ? t_meter : nullptr;
}

bool UpperMeter::is_active() {
    return counting() != nullptr;
}

void UpperMeter::measure(const struct statx& status) {
    const std::uint64_t bytes = bytes_of(status);
    const auto counted = counted_bytes_.find(status.stx_ino);
    const std::uint64_t before = counted == counted_bytes_.end() ? 0 : counted->second;
    if (bytes == before) return;
    const auto kept = contain([&] { counted_bytes_[status.stx_ino] = bytes; });
    if (kept) usage_.bytes += bytes - before;  // Without memory it is not in the account.
}

void UpperMeter::measure(int fd) {
    if (const auto status = status_of(fd)) measure(*status);
}

void UpperMeter::forget(std::uint64_t number) {
    usage_.inodes -= std::min<std::uint64_t>(usage_.inodes, 1);  // Others may work in the upper.
    const auto counted = counted_bytes_.find(number);
    if (counted == counted_bytes_.end()) return;
    usage_.bytes -= counted->second;
    counted_bytes_.erase(counted);
}

bool UpperMeter::has_room(const Growth& growth) const {
    if (growth.bytes != 0 && limits.bytes != 0 && usage_.bytes + growth.bytes > limits.bytes) return false;
    return growth.inodes == 0 || limits.inodes == 0 || usage_.inodes + growth.inodes <= limits.inodes;
}

Result<void> UpperMeter::room_for(const Growth& growth) {
    const UpperMeter* const meter = counting();
    if (!meter || meter->may_exceed_ || meter->has_room(growth)) return {};
    return fail(EDQUOT);
}

Result<void> UpperMeter::room_for_copy(const Growth& growth) {
    const UpperMeter* const meter = counting();
    if (!meter || meter->has_room(growth)) return {};
    return fail(EDQUOT);
}

std::uint64_t UpperMeter::counted_bytes() {
    const UpperMeter* const meter = counting();
    return meter ? meter->usage_.bytes : 0;
}

Result<void> UpperMeter::had_room(std::uint64_t before_bytes) {
    const UpperMeter* const meter = counting();
    if (!meter || meter->limits.bytes == 0 || meter->usage_.bytes <= std::max(before_bytes, meter->limits.bytes))
        return {};
    return fail(EDQUOT);
}

UpperMeter::Scope::Scope(UpperMeter* meter, bool may_exceed) : before_(t_meter) {
    t_meter = meter;
    if (meter) meter->may_exceed_ = may_exceed;
}

UpperMeter::Scope::~Scope() {
    t_meter = before_;
}

UpperMeter::OneFile::OneFile(int fd) : meter_(counting()), fd_(fd) {
    if (meter_) ++meter_->whole_files_;
}

UpperMeter::OneFile::~OneFile() {
    if (!meter_) return;
    --meter_->whole_files_;
    meter_->measure(fd_);
}

UpperMeter::Names::Names(const Spot& at, const Spot* other) : meter_(counting()), at_(at), other_(other) {
    if (meter_) bytes_at_start_ = meter_->usage_.bytes;
}

void UpperMeter::Names::loses(const Spot& gone) {
    if (!meter_) return;
    const auto status = status_of(gone);
    if (status && (S_ISDIR(status->stx_mode) || status->stx_nlink == 1)) lost_ = status->stx_ino;
}

void UpperMeter::Names::done(const Spot* made, std::uint64_t made_inodes) {
    if (!meter_) return;
    if (lost_) meter_->forget(*lost_);
    lost_.reset();
    meter_->measure(at_.fd());
    if (other_) meter_->measure(other_->fd());
    if (made)
        if (const auto status = status_of(*made)) meter_->measure(*status);
    meter_->usage_.inodes += made_inodes;
}

bool UpperMeter::Names::is_over() const {
    if (!meter_ || meter_->may_exceed_ || meter_->limits.bytes == 0) return false;
    return meter_->usage_.bytes > meter_->limits.bytes && meter_->usage_.bytes > bytes_at_start_;
}

std::uint64_t UpperMeter::write_growth(int fd, std::uint64_t offset_bytes, std::uint64_t size_bytes) {
    const auto status = status_of(fd);
    if (!status || size_bytes == 0) return size_bytes;
    const std::uint64_t begin = offset_bytes / kBlockBytes * kBlockBytes;
    const std::uint64_t end = in_blocks(offset_bytes + size_bytes);
    const std::uint64_t file_end = in_blocks(status->stx_size);
    const std::uint64_t behind = end > file_end ? end - std::max(begin, file_end) : 0;
    if (begin >= file_end || status->stx_blocks * 512 >= file_end) return behind;
    std::uint64_t growth = behind;  // And the holes of what lies inside.
    for (std::uint64_t at = begin; at < std::min(end, file_end);) {
        const std::uint64_t inside_end = std::min(end, file_end);
        const off_t data = ::lseek(fd, static_cast<off_t>(at), SEEK_DATA);
        const std::uint64_t hole_end = data < 0 ? inside_end : std::min<std::uint64_t>(data, inside_end);
        growth += hole_end - at;
        if (hole_end == inside_end) break;
        const off_t hole = ::lseek(fd, data, SEEK_HOLE);
        if (hole <= data) break;  // It was cut meanwhile.
        at = std::max<std::uint64_t>(static_cast<std::uint64_t>(hole), at + 1);
    }
    return growth;
}

}  // namespace lamina::unionfs
