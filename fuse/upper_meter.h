#pragma once

#include "fuse/quota.h"
#include "fuse/upper_calls.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <unordered_map>

namespace lamina::unionfs {

/// Counts what lies in an upper directory and beside it in the work folder, and says EDQUOT to what would exceed a
/// limit. Bytes: of a regular file what it has on disk, at most its size in whole blocks (some file systems set space
/// aside behind the end of a growing file); of all else what it has on disk. Inodes: all below the folders, whiteouts
/// too; each once, however many names it has.
///
/// The calls of upper_calls.h count and ask for themselves, on a thread that has a Scope. One thread at a time.
class UpperMeter {
public:
    /// Looks through all of the folders. Descriptors are borrowed for the call.
    struct Folders {
        Spot upper;  ///< Of each the folder's own place, ".".
        Spot work;
        Spot index;
    };
    static Result<std::unique_ptr<UpperMeter>> look_through(const Folders& folders);

    QuotaLimits limits;
    const QuotaUsage& usage() const noexcept { return usage_; }

    /// What something would add. EDQUOT.
    struct Growth {
        std::uint64_t bytes = 0;
        std::uint64_t inodes = 0;
    };
    /// Nothing is refused where the Scope says so: of removals that leave whiteouts.
    static Result<void> room_for(const Growth& growth);
    /// For copies, which are refused in every Scope.
    static Result<void> room_for_copy(const Growth& growth);
    static std::uint64_t counted_bytes();
    /// After a copy, with counted_bytes() of before it: EDQUOT when it took more than was known.
    static Result<void> had_room(std::uint64_t before_bytes);

    /// While it lives, this thread's calls are counted. Null: by none.
    class Scope {
    public:
        Scope(UpperMeter* meter, bool may_exceed);
        ~Scope();
        Scope(const Scope&) = delete;
        Scope& operator=(const Scope&) = delete;

    private:
        UpperMeter* const before_;
    };

    /// Counts how an open file grows or shrinks while it lives, whatever is done to it; what calls of upper_calls.h
    /// would count of it is in that.
    class OneFile {
    public:
        explicit OneFile(int fd);
        ~OneFile();
        OneFile(const OneFile&) = delete;
        OneFile& operator=(const OneFile&) = delete;

    private:
        UpperMeter* const meter_;
        const int fd_;
    };

    /// The same for one call that changes names in one or two folders.
    class Names {
    public:
        explicit Names(const Spot& at, const Spot* other = nullptr);
        void loses(const Spot& gone);  ///< The call takes this name away: an inode goes if it is its only one.
        bool is_counted() const noexcept { return meter_ != nullptr; }
        /// The call has been done. `made`: has come to be, by it.
        void done(const Spot* made, std::uint64_t made_inodes);
        /// What was made brought the account over the limit.
        bool is_over() const;

    private:
        UpperMeter* const meter_;
        const Spot& at_;
        const Spot* const other_;
        std::uint64_t bytes_at_start_ = 0;
        std::optional<std::uint64_t> lost_;  ///< Its number.
    };

    /// What writing to a range of a file will add.
    static std::uint64_t write_growth(int fd, std::uint64_t offset_bytes, std::uint64_t size_bytes);
    static bool is_active();  ///< On this thread, now.
    static std::uint64_t in_blocks(std::uint64_t size_bytes);

private:
    UpperMeter() = default;
    static UpperMeter* counting();
    bool has_room(const Growth& growth) const;
    void measure(const struct statx& status);
    void measure(int fd);
    void forget(std::uint64_t number);
    class Search;

    /// Of each inode what is in the account, by its number; none for nothing. What a file takes may change without a
    /// call (when its data goes to the disk): so that what is taken out is what was put in.
    std::unordered_map<std::uint64_t, std::uint64_t> counted_bytes_;
    QuotaUsage usage_;
    bool may_exceed_ = false;
    unsigned whole_files_ = 0;  ///< OneFile objects alive.
};

}  // namespace lamina::unionfs
