#include "fuse/mount_reader.h"

#include "fuse/change_list.h"
#include "fuse/control.h"
#include "fuse/folder_lock.h"
#include "fuse/image_view.h"
#include "fuse/json_text.h"
#include "fuse/layer_export.h"
#include "fuse/mount_state.h"
#include "store/error.h"
#include "store/file.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

/// A mount that nobody serves is read under its lock, shared. A served one is read as of a cut, which its server holds
/// as long as our connection to its control socket lasts. Between the two, while a server starts or ends, we wait.
namespace lamina::unionfs {

namespace {

constexpr std::chrono::seconds kPatience{10};
constexpr std::chrono::milliseconds kPause{5};
constexpr std::uint64_t kCacheBytes = std::uint64_t{64} << 20;
constexpr std::size_t kOutputBytes = std::size_t{1} << 18;

/// Buffered output to a descriptor.
class FdSink : public store::ByteSink {
public:
    explicit FdSink(int fd) : fd_(fd) { buffer_.reserve(kOutputBytes); }
    void write(std::span<const std::byte> data) override {
        if (buffer_.size() + data.size() > kOutputBytes) flush();
        if (data.size() > kOutputBytes) return write_out(data);
        buffer_.insert(buffer_.end(), data.begin(), data.end());
    }
    void write(std::string_view text) { write(std::as_bytes(std::span(text.data(), text.size()))); }
    void flush() {
        write_out(buffer_);
        buffer_.clear();
    }

private:
    void write_out(std::span<const std::byte> data) const {
        while (!data.empty()) {
            const ssize_t written = ::write(fd_, data.data(), data.size());
            if (written < 0 && errno == EINTR) continue;
            if (written < 0) store::throw_errno(errno, "write the output");
            data = data.subspan(static_cast<std::size_t>(written));
        }
    }
    int fd_;
    std::vector<std::byte> buffer_;
};

std::uint64_t number_in(const std::string& answer, const std::string& key) {
    const std::string member = "\"" + key + "\":";
    const auto at = answer.find(member);
    std::uint64_t number = 0;
    if (at != answer.npos) {
        const char* const first = answer.data() + at + member.size();
        const auto parsed = std::from_chars(first, answer.data() + answer.size(), number);
        if (parsed.ec == std::errc() && parsed.ptr != first) return number;
    }
    throw store::Error(store::Errc::malformed, "the mount's server answered what is no cut: " + answer.substr(0, 200));
}

/// A mount's changes, standing still for as long as this lives.
class MountReader {
public:
    explicit MountReader(const std::string& folder)
        : base_(store::read_mount_base(folder)),
          view_(store::ReadView::open(store_root_of(folder), base_.tree, kCacheBytes),
                [](const std::string& line) { std::fprintf(stderr, "lamina-fuse: %s\n", line.c_str()); }) {
        const auto until = std::chrono::steady_clock::now() + kPatience;
        while (!open(folder)) {
            if (std::chrono::steady_clock::now() > until) {
                throw store::Error(store::Errc::busy, folder + ": its server does not answer");
            }
            std::this_thread::sleep_for(kPause);
        }
    }
    /// What was read since may not have stood still.
    bool has_lost_server() const { return server_ && !server_->is_alive(); }
    const ChangeSet& changes() const { return std::as_const(*state_).changes(); }
    const View& view() const { return view_; }
    const Keeper& bytes() { return state_->keeper(); }

private:
    static std::string store_root_of(const std::string& folder) { return store::folder_of(store::folder_of(folder)); }
    bool open(const std::string& folder) {
        lock_ = FolderLock::try_shared(folder);
        if (lock_) return open_still(folder);
        try {
            server_.emplace(folder);
            const std::string answer = server_->ask(R"({"ask":"cut"})");
            if (!answer.starts_with(R"({"ok":true)")) return open_refused(folder, answer);
            const LogKeeper::Cut cut{.generation = number_in(answer, "generation"),
                                     .log_bytes = number_in(answer, "log_bytes")};
            state_ = MountState::open_cut(folder, base_.tree, view_, cut);
            return true;
        } catch (const store::Error& error) {
            // It is about to start, or to end; or it was killed, and another one writes on.
            if (error.code() == store::Errc::unavailable || has_lost_server()) return false;
            throw;
        }
    }
    bool open_still(const std::string& folder) {
        state_ = MountState::open(folder, base_.tree, view_, {.is_read_only = true, .log = {}, .boot = {}});
        return true;
    }
    bool open_refused(const std::string& folder, const std::string& answer) {
        const bool is_read_only = answer.find(R"("code":"unsupported")") != answer.npos;
        if (is_read_only) return open_still(folder);  // Its server changes nothing either.
        throw store::Error(store::Errc::unavailable, folder + ": its server refused a cut: " + answer.substr(0, 200));
    }

    store::MountBase base_;
    ImageView view_;
    std::optional<FolderLock> lock_;
    std::optional<ControlClient> server_;
    std::unique_ptr<MountState> state_;
};

/// Calls `read` with a mount's changes; when the server that holds them still is killed meanwhile, once more.
template <class Read>
void read_still(const std::string& folder, Read&& read) {
    constexpr unsigned kServersLimit = 100;
    for (unsigned servers = 1;; ++servers) {
        MountReader mount(folder);
        try {
            read(mount);
        } catch (const store::Error&) {
            if (!mount.has_lost_server()) throw;
        }
        if (!mount.has_lost_server()) return;
        if (servers == kServersLimit) throw store::Error(store::Errc::busy, folder + ": its server dies all the time");
    }
}

std::string absolute(const std::string& path) {
    char* const real = ::realpath(path.c_str(), nullptr);
    if (!real) store::throw_errno(errno, path);
    std::string text(real);
    std::free(real);
    return text;
}

const char* kind_text(ListedChange::Kind kind) {
    switch (kind) {
        case ListedChange::Kind::added:
            return "A";
        case ListedChange::Kind::deleted:
            return "D";
        case ListedChange::Kind::changed:
        case ListedChange::Kind::parent:
            break;
    }
    return "C";
}

const char* type_text(std::uint32_t type) {
    switch (type & S_IFMT) {
        case S_IFDIR:
            return "directory";
        case S_IFLNK:
            return "symlink";
        case S_IFCHR:
            return "char_device";
        case S_IFBLK:
            return "block_device";
        case S_IFIFO:
            return "fifo";
        case S_IFSOCK:
            return "socket";
        default:
            return "file";
    }
}

}  // namespace

void run_diff(const std::string& mount_folder, const DiffOptions& options, int out_fd) {
    std::vector<ListedChange> lines;
    read_still(absolute(mount_folder), [&](const MountReader& mount) {
        lines.clear();
        const ListOptions list{.lists_moved = options.lists_moved};
        list_changes(mount.changes(), mount.view(), list, [&](const ListedChange& change) {
            if (!change.path.empty()) lines.push_back(change);
        });
    });
    std::sort(lines.begin(), lines.end(), [](const auto& a, const auto& b) { return a.path < b.path; });
    FdSink out(out_fd);
    for (const ListedChange& line : lines) {
        JsonObject object;
        object.text("kind", kind_text(line.kind)).text("path", "/" + line.path).text("type", type_text(line.type));
        out.write(object.str() + "\n");
    }
    out.flush();
}

void run_export(const std::string& mount_folder, int out_fd) {
    MountReader mount(absolute(mount_folder));
    FdSink out(out_fd);
    try {
        export_layer(mount.changes(), mount.view(), mount.bytes(), out);
        out.flush();
    } catch (const store::Error&) {
        if (!mount.has_lost_server()) throw;
    }
    if (mount.has_lost_server())
        throw store::Error(store::Errc::busy, mount_folder + ": its server was replaced meanwhile; try again");
}

}  // namespace lamina::unionfs
