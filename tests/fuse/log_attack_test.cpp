#include "fuse/log_keeper.h"
#include "store/error.h"
#include "store/file_ops.h"
#include "support/catch.h"
#include "support/kept_mount.h"
#include "support/prefixes.h"
#include "support/temp_dir.h"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <functional>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <vector>

using namespace lamina;
using namespace lamina::unionfs;
using lamina::test::KeptMount;

namespace {

using FileBytes = std::vector<std::byte>;

FileBytes bytes_of(const std::string& path) {
    return store::exists(path) ? store::read_file(path, 1 << 28) : FileBytes();
}

void put(const std::string& path, std::span<const std::byte> bytes) {
    store::remove_file(path);
    store::File file = store::File::create(path);
    if (!bytes.empty()) file.append(bytes);
}

struct Outcome {
    std::string text;   ///< Of the state, when the mount opens.
    std::string error;  ///< Else why not.
};

Outcome open_in(const std::string& folder, const View& view, std::uint8_t boot) {
    try {
        KeptMount mount(folder, view, {.boot = boot, .is_read_only = true});
        return {.text = test::text_of(mount.state()), .error = ""};
    } catch (const store::Error& error) {
        return {.text = "", .error = error.what()};
    }
}

/// A mount led along a seed's way, with a sync now and then.
struct Run {
    explicit Run(KeptMount& kept) : mount(kept) {}
    KeptMount& mount;
    std::size_t steps = 0;   ///< That were answered.
    std::size_t synced = 0;  ///< Of them, those that are durable.
    /// Nothing is ever written over or used again: so that a log may be cut where no crash would cut it.
    bool keeps_data = false;

    /// False: the disk failed.
    bool go(std::uint32_t seed, unsigned count, unsigned sync_every) {
        test::RandomUser user(seed);
        for (unsigned step = 0; step < count; ++step) {
            if (!user.step(mount)) return false;
            steps = step + 1;
            if (keeps_data) REQUIRE(mount.keeper().begin_cut());
            if (sync_every == 0 || steps % sync_every != 0) continue;
            if (!mount.keeper().sync()) return false;
            synced = steps;
        }
        return true;
    }
};

KeptMount::Options small_buffers() {
    KeptMount::Options options;
    options.log.buffer_bytes = 600;
    options.log.checkpoint_log_bytes = 6000;
    return options;
}

/// Fails, or does something else, at the nth step that changes the disk.
class AtStep : public store::FaultHook {
public:
    AtStep(long step, std::function<void()> action) : left_(step), action_(std::move(action)) {
        store::g_fault_hook = this;
    }
    ~AtStep() override { store::g_fault_hook = nullptr; }
    void before(std::string_view, std::string_view) override {
        if (--left_ == 0) action_();
    }
    bool has_happened() const { return left_ <= 0; }

private:
    long left_;
    std::function<void()> action_;
};

class FullDisk : public store::FaultHook {
public:
    FullDisk() { store::g_fault_hook = this; }
    ~FullDisk() override { store::g_fault_hook = nullptr; }
    void before(std::string_view step, std::string_view) override {
        if (step == "allocate") throw store::Error(store::Errc::no_space, "full");
    }
};

}  // namespace

TEST_CASE("a log cut at any byte replays to a prefix", "[log][bad]") {
    const test::TempDir folder;
    const auto view = test::small_view();
    const test::Prefixes states(3, 30, view);
    {
        KeptMount mount(folder.path(), view);
        Run run(mount);
        run.keeps_data = true;
        REQUIRE(run.go(3, 30, 10));
    }
    const FileBytes log = bytes_of(folder / "log.1");
    std::size_t last = 0;
    for (std::size_t size = 0; size <= log.size(); ++size) {
        put(folder / "log.1", std::span(log).first(size));
        const Outcome outcome = open_in(folder.path(), view, 1);
        const auto found = states.find(outcome.text);
        if (!found) FAIL("cut at " << size << ": no prefix. " << outcome.error);
        if (*found < last) FAIL("cut at " << size << ": less than before");
        last = *found;
    }
    CHECK(states.at(last) == states.at(30));
}

TEST_CASE("a log with any byte flipped replays to a prefix, or says that its header is damaged", "[log][bad]") {
    const test::TempDir folder;
    const auto view = test::small_view();
    const test::Prefixes states(4, 20, view);
    {
        KeptMount mount(folder.path(), view);
        Run run(mount);
        run.keeps_data = true;
        REQUIRE(run.go(4, 20, 7));
    }
    const FileBytes log = bytes_of(folder / "log.1");
    for (std::size_t at = 0; at < log.size(); ++at) {
        FileBytes flipped = log;
        flipped[at] ^= std::byte{1} << (at % 8);
        put(folder / "log.1", flipped);
        const Outcome outcome = open_in(folder.path(), view, at % 2 == 0 ? 1 : 2);
        if (at < log_format::kHeaderBytes) {
            if (outcome.error.find("log.1: ") == std::string::npos) FAIL("header byte " << at << " was not seen");
        } else if (!states.find(outcome.text)) {
            FAIL("byte " << at << ": no prefix. " << outcome.error);
        }
    }
}

TEST_CASE("a checkpoint with any byte flipped or cut off is refused in one line", "[checkpoint][bad]") {
    const test::TempDir folder;
    const auto view = test::small_view();
    {
        KeptMount mount(folder.path(), view);
        REQUIRE(Run(mount).go(5, 25, 0));
        REQUIRE(mount.keeper().write_checkpoint());
    }
    const std::string path = folder / "checkpoint";
    const FileBytes good = bytes_of(path);
    for (std::size_t at = 0; at < good.size(); ++at) {
        FileBytes flipped = good;
        flipped[at] ^= std::byte{1} << (at % 8);
        put(path, flipped);
        if (open_in(folder.path(), view, 1).error.find("checkpoint: ") == std::string::npos) FAIL("flipped " << at);
        put(path, std::span(good).first(at));
        const std::string error = open_in(folder.path(), view, 1).error;
        if (error.find("checkpoint: ") == std::string::npos) FAIL("cut at " << at);
        if (error.find('\n') != std::string::npos) FAIL("more than one line");
    }
    FileBytes longer = good;
    longer.push_back(std::byte{0});
    put(path, longer);
    CHECK_FALSE(open_in(folder.path(), view, 1).error.empty());
}

TEST_CASE("a missing half of checkpoint and log is refused", "[mount_state][bad]") {
    const test::TempDir folder;
    const auto view = test::small_view();
    {
        KeptMount mount(folder.path(), view);
        REQUIRE(mount.write(mount.make(kRootNode, "file", S_IFREG | 0644).value(), 0, "data"));
        REQUIRE(Run(mount).go(5, 10, 0));
        REQUIRE(mount.keeper().write_checkpoint());
        REQUIRE(mount.make(kRootNode, "more", S_IFREG | 0644));
    }
    SECTION("the log") {
        store::remove_file(folder / "log.2");
        CHECK(open_in(folder.path(), view, 1).error.find("missing") != std::string::npos);
    }
    SECTION("the checkpoint") {
        store::remove_file(folder / "checkpoint");
        CHECK(open_in(folder.path(), view, 1).error.find("missing") != std::string::npos);
    }
    SECTION("the extents") {
        put(folder / "extents", {});
        CHECK(open_in(folder.path(), view, 1).error.find("extents: ") != std::string::npos);
    }
}

TEST_CASE("changes of another image are refused", "[mount_state][bad]") {
    const test::TempDir folder;
    const auto view = test::small_view();
    {
        KeptMount mount(folder.path(), view);
        REQUIRE(mount.make(kRootNode, "a", S_IFREG | 0644));
    }
    const store::TreeDigest other{store::Digest::of(store::as_bytes("another tree"))};
    CHECK_THROWS_WITH(MountState::open(folder.path(), other, view, {.is_read_only = true, .log = {}, .boot = {}}),
                      Catch::Matchers::ContainsSubstring("another image"));
}

TEST_CASE("when the disk fails at any step, what was answered before is there", "[log_keeper][fault]") {
    const auto view = test::small_view();
    const test::Prefixes states(6, 40, view);
    const auto code = GENERATE(store::Errc::no_space, store::Errc::corrupt);
    for (long step = 1;; ++step) {
        CAPTURE(step);
        const test::TempDir folder;
        std::size_t synced = 0;
        std::size_t answered = 0;
        {
            KeptMount mount(folder.path(), view, small_buffers());
            Run run(mount);
            AtStep fault(step, [&] { throw store::Error(code, "a fault of the test"); });
            const bool is_good = run.go(6, 40, 9);
            synced = run.synced;
            answered = run.steps;
            if (!fault.has_happened()) {
                REQUIRE(is_good);
                return;
            }
        }
        const Outcome outcome = open_in(folder.path(), view, 1);
        const auto found = states.find(outcome.text);
        REQUIRE(found.has_value());
        CHECK(*found >= synced);
        CHECK(states.find(states.at(*found)) <= states.find(states.at(std::min<std::size_t>(answered + 1, 40))));
        const auto durable = states.find(open_in(folder.path(), view, 2).text);
        REQUIRE(durable.has_value());
        CHECK(*durable >= synced);
    }
}

TEST_CASE("a full disk fails one write, and the mount goes on", "[log_keeper][fault]") {
    const test::TempDir folder;
    const auto view = test::small_view();
    KeptMount mount(folder.path(), view);
    const NodeId file = mount.make(kRootNode, "file", S_IFREG | 0644).value();
    REQUIRE(mount.write(file, 0, "before"));
    REQUIRE(mount.keeper().sync());
    const std::string before = test::text_of(mount.state());
    {
        const FullDisk full;
        CHECK(mount.write(file, 6, std::string(2 << 20, 'x')) == fail(ENOSPC));
    }
    CHECK(test::text_of(mount.state()) == before);
    CHECK(mount.write(file, 6, " after"));
    CHECK(mount.keeper().sync());
    CHECK(mount.own_bytes(file) == "before after");
}

TEST_CASE("a disk error makes the mount read-only, and its syncs fail", "[log_keeper][fault]") {
    const test::TempDir folder;
    const auto view = test::small_view();
    KeptMount mount(folder.path(), view);
    REQUIRE(mount.make(kRootNode, "a", S_IFREG | 0644));
    {
        AtStep broken(1, [] { throw store::Error(store::Errc::corrupt, "I/O error"); });
        CHECK(mount.keeper().sync().error() == Errno{EIO});
    }
    CHECK(mount.make(kRootNode, "b", S_IFREG | 0644).error() == Errno{EROFS});
    CHECK(mount.keeper().sync().error() == Errno{EIO});
    CHECK(mount.keeper().begin_cut().error() == Errno{EIO});
}

namespace {

/// Runs the seed's way in a child that is killed at a step. Returns how many steps were answered and synced before.
std::pair<std::size_t, std::size_t> killed_run(const std::string& folder, const View& view, long kill_at,
                                               bool& was_killed) {
    int ends[2];
    REQUIRE(::pipe(ends) == 0);
    const pid_t child = ::fork();
    if (child == 0) {
        AtStep kill(kill_at, [] { ::kill(::getpid(), SIGKILL); });
        KeptMount mount(folder, view, small_buffers());
        test::RandomUser user(8);
        for (std::uint32_t step = 1; step <= 40; ++step) {
            (void)user.step(mount);
            if (step % 11 == 0) {
                if (!mount.keeper().sync()) ::_exit(1);
                const std::uint32_t synced = step | 0x80000000U;
                if (::write(ends[1], &synced, sizeof synced) != ssize_t{sizeof synced}) ::_exit(1);
            }
            if (::write(ends[1], &step, sizeof step) != ssize_t{sizeof step}) ::_exit(1);
        }
        ::_exit(0);
    }
    ::close(ends[1]);
    std::pair<std::size_t, std::size_t> counts{0, 0};
    std::uint32_t word = 0;
    while (::read(ends[0], &word, sizeof word) == ssize_t{sizeof word}) {
        if ((word & 0x80000000U) != 0)
            counts.second = word & 0x7fffffffU;
        else
            counts.first = word;
    }
    ::close(ends[0]);
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    was_killed = WIFSIGNALED(status);
    REQUIRE((was_killed || WEXITSTATUS(status) == 0));
    return counts;
}

}  // namespace

TEST_CASE("killed at any step of the disk, a mount replays to a prefix with all that was synced",
          "[log_keeper][crash]") {
    const auto view = test::small_view();
    const test::Prefixes states(8, 40, view);
    for (long kill_at = 1;; ++kill_at) {
        CAPTURE(kill_at);
        const test::TempDir folder;
        bool was_killed = false;
        const auto [answered, synced] = killed_run(folder.path(), view, kill_at, was_killed);
        const auto found = states.find(open_in(folder.path(), view, 1).text);
        REQUIRE(found.has_value());
        CHECK(*found >= synced);
        KeptMount mount(folder.path(), view);  // And it goes on from there.
        REQUIRE(mount.make(kRootNode, "after the kill", S_IFREG | 0644));
        REQUIRE(mount.keeper().sync());
        const std::string text = test::text_of(mount.state());
        CHECK(open_in(folder.path(), view, 2).text == text);
        if (!was_killed) return;
    }
}

namespace {

constexpr std::size_t kSectorBytes = 512;

/// What a disk may hold after a power cut: of each file what was synced, and any of the sectors written since.
class CutDisk : public store::FaultHook {
public:
    explicit CutDisk(std::string folder, std::uint32_t seed) : folder_(std::move(folder)), random_(seed) {
        store::g_fault_hook = this;
    }
    ~CutDisk() override { store::g_fault_hook = nullptr; }
    void before(std::string_view step, std::string_view path) override {
        finish_sync();
        if (step == "fsync") syncing_ = std::string(path);
        if (inspect) inspect();
    }
    /// Writes such a disk to a folder.
    void power_cut(const std::string& target) {
        for (const auto& [name, durable] : durable_) {
            put(target + "/" + name, mixed(durable, bytes_of(folder_ + "/" + name)));
        }
    }
    std::function<void()> inspect;

private:
    void finish_sync() {  // The step before this one was an fsync; nothing was written since it began.
        if (syncing_.empty()) return;
        const std::string name = syncing_.substr(syncing_.rfind('/') + 1);
        if (syncing_ == folder_) {
            for (const std::string& entry : store::list_folder(folder_)) durable_.try_emplace(entry);
        } else {
            files_[name] = bytes_of(syncing_);
            if (durable_.contains(name)) durable_[name] = files_[name];
        }
        for (auto& [entry, bytes] : durable_) {
            if (files_.contains(entry)) bytes = files_[entry];
        }
        syncing_.clear();
    }
    FileBytes mixed(const FileBytes& durable, const FileBytes& current) {
        FileBytes out = durable;
        const std::size_t size =
            durable.size() + (current.size() > durable.size() ? random_() % (current.size() - durable.size() + 1) : 0);
        out.resize(size);
        const unsigned keeps = random_() % 5;  // Of four; all or nothing as well.
        for (std::size_t at = 0; at < size; at += kSectorBytes) {
            if (random_() % 4 >= keeps) continue;
            for (std::size_t i = at; i < std::min({at + kSectorBytes, size, current.size()}); ++i) out[i] = current[i];
        }
        return out;
    }
    std::string folder_;
    std::mt19937 random_;
    std::string syncing_;
    std::map<std::string, FileBytes> files_;    // As synced; the name may not be.
    std::map<std::string, FileBytes> durable_;  // Names that are.
};

}  // namespace

TEST_CASE("after a power cut at any step a mount is a prefix with all that was synced",
          "[log_keeper][crash][data.whole]") {
    const auto view = test::small_view();
    const auto seed = GENERATE(range(20U, 26U));
    CAPTURE(seed);
    const test::Prefixes states(seed, 60, view);
    const test::TempDir folder;
    CutDisk disk(folder.path(), seed);
    KeptMount::Options options;
    options.log.buffer_bytes = 900;
    KeptMount mount(folder.path(), view, options);
    Run run(mount);
    unsigned checked = 0;
    disk.inspect = [&] {
        const test::TempDir after;
        store::g_fault_hook = nullptr;  // What follows is not on this disk.
        disk.power_cut(after.path());
        const Outcome outcome = open_in(after.path(), view, 2);
        const auto found = states.find(outcome.text);
        if (!found) FAIL("after step " << run.steps << ": no prefix. " << outcome.error << outcome.text);
        if (*found < run.synced) FAIL("after step " << run.steps << ": " << run.synced << " were synced");
        ++checked;
        store::g_fault_hook = &disk;
    };
    test::RandomUser user(seed);
    for (unsigned step = 0; step < 60; ++step) {
        REQUIRE(user.step(mount));
        run.steps = step + 1;
        if (run.steps % 8 != 0) continue;
        REQUIRE(mount.keeper().sync());
        run.synced = run.steps;
    }
    CHECK(checked > 30);
}
