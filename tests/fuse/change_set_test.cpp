#include "fuse/change_set.h"

#include "fuse/change_set_records.h"
#include "support/catch.h"
#include "support/change_dump.h"
#include "support/fake_view.h"
#include "support/killed_child.h"
#include "support/soundness.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/ptrace.h>

#include <random>
#include <set>
#include <utility>

using namespace lamina;
using namespace lamina::unionfs;
using change::Change;

namespace {

constexpr Timestamp kTime{.seconds = 7, .nanoseconds = 8};

/// /etc(2): motd(3), hosts(4) = hosts.old; /deep(5)/er(6)/file(7); /link(8).
struct SetAt {
    SetAt() {
        const NodeId etc = view.directory(kRootNode, "etc");
        view.file(etc, "motd", "hello from below");
        view.link(view.file(etc, "hosts", "localhost"), etc, "hosts.old");
        const NodeId er = view.directory(view.directory(kRootNode, "deep"), "er");
        view.node(view.file(er, "file", "bottom")).xattrs = {{"user.a", "1"}, {"security.capability", "c"}};
        view.symlink(kRootNode, "link", "etc/motd");
    }
    std::vector<std::string> problems() { return test::Soundness(changes).problems(); }
    int apply(const Change& change) {
        const auto applied = changes.apply(change);
        return applied ? 0 : static_cast<int>(applied.error());
    }
    test::FakeView view;
    std::unique_ptr<Arena> arena = *Arena::create();
    ChangeSet changes{*arena, view};
};

constexpr NodeId kEtc = 2, kMotd = 3, kHosts = 4, kDeep = 5, kEr = 6, kFile = 7;
constexpr NodeId kNew = kFirstNewNode;

/// One of each kind, each possible after those before it.
const std::vector<Change>& example_changes() {
    static const std::vector<Change> changes = {
        change::Make{.parent = kEtc, .name = "new", .node = kNew, .mode = S_IFREG | 0644, .time = kTime},
        change::Make{.parent = kRootNode,
                     .name = "folder",
                     .node = kNew + 1,
                     .mode = S_IFDIR | 0755,
                     .time = kTime,
                     .access_acl = "a",
                     .default_acl = "d"},
        change::Make{.parent = kNew + 1,
                     .name = "ln",
                     .node = kNew + 2,
                     .mode = S_IFLNK | 0777,
                     .time = kTime,
                     .link_target = "somewhere"},
        change::Write{.node = kNew, .offset_bytes = 0, .size_bytes = 100, .extent_offset_bytes = 1000, .time = kTime},
        change::Write{.node = kNew, .offset_bytes = 50, .size_bytes = 10, .extent_offset_bytes = 3000, .time = kTime},
        change::Write{.node = kMotd, .offset_bytes = 3, .size_bytes = 4, .extent_offset_bytes = 2000, .time = kTime},
        change::Zero{.node = kMotd, .offset_bytes = 5, .size_bytes = 6, .new_size_bytes = 16, .time = kTime},
        change::Resize{.node = kMotd, .size_bytes = 9, .time = kTime},
        change::Resize{.node = kNew, .size_bytes = 0, .time = kTime},
        change::SetXattr{.node = kFile, .name = "user.b", .value = "2", .time = kTime},
        change::RemoveXattr{.node = kFile, .name = "user.a", .time = kTime},
        change::SetAttributes{.node = kFile, .mode = 0600, .uid = 5, .clears_privileges = true, .ctime = kTime},
        change::Link{.node = kMotd, .parent = kNew + 1, .name = "motd2", .time = kTime},
        change::Remove{.parent = kEtc, .name = "hosts", .time = kTime},
        change::Remove{.parent = kEtc, .name = "hosts.old", .time = kTime},
        change::Rename{.old_parent = kEtc, .old_name = "new", .new_parent = kEtc, .new_name = "motd", .time = kTime},
        change::Rename{.old_parent = kDeep, .old_name = "er", .new_parent = kNew + 1, .new_name = "er", .time = kTime},
        change::Rename{.old_parent = kRootNode,
                       .old_name = "deep",
                       .new_parent = kNew + 1,
                       .new_name = "ln",
                       .is_exchange = true,
                       .time = kTime},
        change::Rename{
            .old_parent = kNew + 1, .old_name = "er", .new_parent = kNew + 1, .new_name = "ln", .time = kTime},
        change::Make{.parent = kRootNode, .node = kNew + 3, .mode = S_IFREG, .time = kTime},
    };
    return changes;
}

store::UniqueFd another_fd(const Arena& arena) {
    return store::UniqueFd(::fcntl(arena.fd(), F_DUPFD_CLOEXEC, 0));
}

std::vector<std::string> dump_of(Arena& arena, const View& view) {
    return test::dump(ChangeSet(arena, view));
}

}  // namespace

TEST_CASE("changes of each kind keep the records sound, and a copy of the state is equal", "[fuse][changes]") {
    SetAt at;
    for (const Change& change : example_changes()) {
        CAPTURE(change.index());
        CHECK(at.apply(change) == 0);
        CHECK(at.problems().empty());
        SetAt copy;
        CHECK(test::copy_state(at.changes, copy.changes) == 0);
        CHECK(test::dump(copy.changes) == test::dump(at.changes));
        CHECK(test::Soundness(copy.changes).problems().empty());
    }
}

TEST_CASE("a process killed at any step of a change leaves the state before it or after it", "[fuse][changes]") {
    SetAt at;
    for (const Change& change : example_changes()) {
        CAPTURE(change.index());
        const auto before = test::dump(at.changes);
        bool is_killed = true;
        for (long step = 1; is_killed; step += 2) {
            is_killed = test::killed_at_step(step, [&] { (void)at.changes.apply(change); });
            const auto next = *Arena::attach(another_fd(*at.arena));
            const auto found = dump_of(*next, at.view);
            if (found == before) continue;
            is_killed = false;  // The kill came behind the commit.
            CHECK(at.problems().empty());
        }
    }
    SetAt straight;
    for (const Change& change : example_changes()) REQUIRE(straight.apply(change) == 0);
    CHECK(test::dump(straight.changes) == test::dump(at.changes));
}

namespace {

/// A copy of what an arena's file holds, as a process that comes after a kill would find it.
store::UniqueFd copy_of(const std::byte* arena, std::uint64_t log_end, std::uint64_t data_end) {
    store::UniqueFd copy(::memfd_create("copy", MFD_CLOEXEC));
    REQUIRE(::ftruncate(copy.get(), static_cast<off_t>(data_end)) == 0);
    const auto put = [&](std::uint64_t begin, std::uint64_t end) {
        REQUIRE(::pwrite(copy.get(), arena + begin, end - begin, static_cast<off_t>(begin)) ==
                static_cast<ssize_t>(end - begin));
    };
    put(0, log_end);
    put(arena_format::kDataOffset, data_end);
    return copy;
}

/// A child that is stepped through one instruction at a time while it runs `work`.
class SteppedChild {
public:
    template <class Work>
    explicit SteppedChild(Work&& work) : pid_(::fork()) {
        if (pid_ == 0) {
            if (::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) ::_exit(99);
            ::raise(SIGSTOP);
            work();
            ::_exit(0);
        }
        ::waitpid(pid_, &status_, 0);
    }
    bool is_stopped() const { return WIFSTOPPED(status_); }
    bool is_refused() const { return WIFEXITED(status_) && WEXITSTATUS(status_) == 99; }
    void step() {
        ::ptrace(PTRACE_SINGLESTEP, pid_, nullptr, nullptr);
        ::waitpid(pid_, &status_, 0);
    }

private:
    pid_t pid_;
    int status_ = 0;
};

}  // namespace

TEST_CASE("a rename cut at any machine instruction is whole or has not happened", "[fuse][changes]") {
    SetAt at;
    for (std::size_t number = 0; number < 12; ++number) REQUIRE(at.apply(example_changes()[number]) == 0);
    const Change rename = change::Rename{
        .old_parent = kEtc, .old_name = "new", .new_parent = kRootNode, .new_name = "link", .time = kTime};
    const auto before = test::dump(at.changes);
    const std::uint64_t data_end = arena_format::kDataOffset + arena_format::kGrowUnitBytes;
    const std::uint64_t log_end = arena_format::kLogOffset + arena_format::kGrowUnitBytes;
    REQUIRE(at.arena->size_bytes() == log_end + arena_format::kGrowUnitBytes);
    const auto* const memory = &at.arena->get(Ref<std::byte>{});
    SteppedChild child([&] { (void)at.changes.apply(rename); });
    if (child.is_refused()) {
        WARN("not run: this process may not trace its children");
        return;
    }
    std::set<std::vector<std::string>> states;
    std::vector<std::byte> last;
    for (; child.is_stopped(); child.step()) {
        const std::vector<std::byte> head(memory, memory + sizeof(arena_format::Header));
        if (head == last) continue;  // The log is as long as it was: what it undoes is the same.
        last = head;
        const auto next = *Arena::attach(copy_of(memory, log_end, data_end));
        states.insert(dump_of(*next, at.view));
    }
    const auto after = test::dump(at.changes);
    CHECK(states == std::set{before, after});
}

namespace {

/// Each is refused, and the state stays as it is.
void check_refused(SetAt& at, const std::vector<Change>& refused) {
    const auto before = test::dump(at.changes);
    for (std::size_t number = 0; number < refused.size(); ++number) {
        CAPTURE(number);
        CHECK(at.apply(refused[number]) == EINVAL);
        CHECK(test::dump(at.changes) == before);
    }
    CHECK(at.problems().empty());
}

}  // namespace

TEST_CASE("operations that a log cannot have seen are refused and change nothing", "[fuse][changes]") {
    SetAt at;
    for (const Change& change : example_changes()) REQUIRE(at.apply(change) == 0);
    const NodeId next = at.changes.next_node();
    const std::string long_name(256, 'n');
    const std::string slash("a/b");
    check_refused(
        at,
        {
            change::Make{.parent = kEtc, .name = "x", .node = next + 1, .mode = S_IFREG},
            change::Make{.parent = kEtc, .name = "x", .node = next - 1, .mode = S_IFREG},
            change::Make{.parent = kEtc, .name = "x", .node = next, .mode = 0644},
            change::Make{.parent = kEtc, .name = "x", .node = next, .mode = S_IFREG | 0200000},
            change::Make{.parent = kEtc, .name = "motd", .node = next, .mode = S_IFREG},
            change::Make{.parent = kEtc, .name = "..", .node = next, .mode = S_IFREG},
            change::Make{.parent = kEtc, .name = slash, .node = next, .mode = S_IFREG},
            change::Make{.parent = kEtc, .name = long_name, .node = next, .mode = S_IFREG},
            change::Make{.parent = kEtc, .name = {}, .node = next, .mode = S_IFDIR},
            change::Make{.parent = kMotd, .name = "x", .node = next, .mode = S_IFREG},
            change::Make{.parent = 0, .name = "x", .node = next, .mode = S_IFREG},
            change::Make{.parent = 999, .name = "x", .node = next, .mode = S_IFREG},
            change::Make{.parent = next, .name = "x", .node = next, .mode = S_IFREG},
            change::Make{.parent = kEtc, .name = "x", .node = next, .mode = S_IFLNK},
            change::Make{.parent = kEtc, .name = "x", .node = next, .mode = S_IFREG, .link_target = "t"},
            change::Link{.node = kEtc, .parent = kRootNode, .name = "x"},
            change::Link{.node = kMotd, .parent = kNew + 1, .name = "motd2"},
            change::Link{.node = 999, .parent = kRootNode, .name = "x"},
            change::Remove{.parent = kRootNode, .name = "nothing"},
            change::Remove{.parent = kEtc, .name = "hosts"},
            change::Remove{.parent = kRootNode, .name = "etc"},
            change::Rename{.old_parent = kRootNode, .old_name = "none", .new_parent = kEtc, .new_name = "x"},
            change::Rename{.old_parent = kRootNode, .old_name = "etc", .new_parent = kEtc, .new_name = "x"},
            change::Rename{.old_parent = kRootNode, .old_name = "folder", .new_parent = kDeep, .new_name = "x"},
            change::Rename{.old_parent = kEtc, .old_name = "motd", .new_parent = kEtc, .new_name = "motd"},
            change::Rename{.old_parent = kEtc, .old_name = "motd", .new_parent = kRootNode, .new_name = "folder"},
            change::Rename{
                .old_parent = kEtc, .old_name = "motd", .new_parent = kRootNode, .new_name = "no", .is_exchange = true},
            change::Rename{.old_parent = kEtc, .old_name = "motd", .new_parent = kEtc, .new_name = "."},
            change::SetAttributes{.node = 999, .mode = 1},
            change::SetAttributes{.node = 0, .mode = 1},
            change::Resize{.node = kEtc, .size_bytes = 1},
            change::Resize{.node = kMotd, .size_bytes = kMaxFileBytes + 1},
            change::Write{.node = kMotd, .offset_bytes = 0, .size_bytes = 0},
            change::Write{.node = kMotd, .offset_bytes = kMaxFileBytes, .size_bytes = 1},
            change::Write{.node = kMotd, .offset_bytes = ~std::uint64_t{0}, .size_bytes = 2},
            change::Write{.node = kMotd, .size_bytes = 2, .extent_offset_bytes = ~std::uint64_t{0}},
            change::Write{.node = kEtc, .size_bytes = 2},
            change::Zero{.node = kMotd, .offset_bytes = 0, .size_bytes = 5, .new_size_bytes = 3},
            change::Zero{.node = kMotd, .offset_bytes = ~std::uint64_t{0}, .size_bytes = 5, .new_size_bytes = 50},
            change::SetXattr{.node = kMotd, .name = "", .value = "x"},
            change::SetXattr{.node = kMotd, .name = "system.posix_acl_access", .value = "no acl"},
            change::RemoveXattr{.node = kMotd, .name = "user.none"},
        });
}

TEST_CASE("a state that cannot be is refused and changes nothing", "[fuse][changes]") {
    SetAt at;
    for (const Change& change : example_changes()) REQUIRE(at.apply(change) == 0);
    const NodeId next = at.changes.next_node();
    check_refused(at,
                  {
                      change::PutNode{.attributes = {.node = kMotd, .mode = S_IFREG}},
                      change::PutNode{.attributes = {.node = next + 9, .mode = S_IFREG}},
                      change::PutNode{.attributes = {.node = next + 9, .mode = S_IFREG, .size_bytes = 3},
                                      .view_size_bytes = 3,
                                      .has_own_xattrs = true},
                      change::PutNode{.attributes = {.node = next + 9, .mode = S_IFLNK, .size_bytes = 3},
                                      .link_target = "four",
                                      .has_own_xattrs = true},
                      change::PutNode{.attributes = {.node = 999, .mode = S_IFREG}},
                      change::PutName{.parent = kEtc, .name = "motd", .node = kMotd},
                      change::PutName{.parent = kRootNode, .name = "nothing", .node = 0},
                      change::PutName{.parent = kRootNode, .name = "x", .node = next},
                      change::PutName{.parent = kRootNode, .name = "x", .node = kHosts},
                      change::PutName{.parent = kRootNode, .name = "x", .node = kNew + 1},
                      change::PutExtent{.node = kMotd, .offset_bytes = 0, .size_bytes = 100, .extent_offset_bytes = 1},
                      change::PutExtent{.node = kMotd, .offset_bytes = 4, .size_bytes = 1, .extent_offset_bytes = 1},
                      change::PutExtent{.node = kNew, .offset_bytes = 0, .size_bytes = 1, .is_hole = true},
                      change::PutXattr{.node = kMotd, .name = "user.x", .value = ""},
                      change::PutXattr{.node = kFile, .name = "user.b", .value = ""},
                      change::PutNextNode{.next = next - 1},
                      change::PutNextNode{.next = ~std::uint64_t{0}},
                  });
}

namespace {

class RandomChange {
public:
    explicit RandomChange(unsigned seed) : random_(seed) {}
    Change next(NodeId next_node) {
        next_node_ = next_node;
        switch (random_() % 14) {
            case 0:
            case 1:
            case 2:
                return change::Make{.parent = node(),
                                    .name = name(),
                                    .node = random_() % 9 ? next_node : node(),
                                    .mode = mode(),
                                    .link_target = random_() % 3 ? "" : "target"};
            case 3:
                return change::Link{.node = node(), .parent = node(), .name = name()};
            case 4:
                return change::Remove{.parent = node(), .name = name()};
            case 5:
            case 6:
                return change::Rename{.old_parent = node(),
                                      .old_name = name(),
                                      .new_parent = node(),
                                      .new_name = name(),
                                      .is_exchange = random_() % 2 == 0};
            case 7:
                return change::Resize{.node = node(), .size_bytes = number()};
            case 8:
                return change::Write{
                    .node = node(), .offset_bytes = number(), .size_bytes = number(), .extent_offset_bytes = number()};
            case 9:
                return change::Zero{
                    .node = node(), .offset_bytes = number(), .size_bytes = number(), .new_size_bytes = number()};
            case 10:
                return change::PutNode{.attributes = {.node = node(),
                                                      .mode = mode(),
                                                      .nlink = static_cast<std::uint32_t>(random_() % 2),
                                                      .size_bytes = number()},
                                       .link_target = random_() % 3 ? "" : "target",
                                       .view_size_bytes = number(),
                                       .has_own_xattrs = random_() % 2 == 0};
            case 11:
                return change::PutName{.parent = node(), .name = name(), .node = random_() % 3 ? node() : 0};
            case 12:
                return change::PutExtent{.node = node(),
                                         .offset_bytes = number(),
                                         .size_bytes = number(),
                                         .extent_offset_bytes = number(),
                                         .is_hole = random_() % 2 == 0};
            default:
                return change::SetXattr{.node = node(), .name = name(), .value = name()};
        }
    }

private:
    NodeId node() {
        return random_() % 2 ? random_() % 10 : kFirstNewNode + random_() % (next_node_ - kFirstNewNode + 2);
    }
    std::string_view name() {
        static constexpr std::string_view names[] = {"etc",  "motd", "hosts", "hosts.old", "deep", "er",
                                                     "file", "link", "a",     "b",         "",     ".."};
        return names[random_() % std::size(names)];
    }
    std::uint32_t mode() {
        static constexpr std::uint32_t modes[] = {S_IFREG | 0644, S_IFDIR | 0755, S_IFLNK | 0777, S_IFIFO, 7};
        return modes[random_() % std::size(modes)];
    }
    std::uint64_t number() {
        static constexpr std::uint64_t numbers[] = {0, 1, 3, 8, 16, 40, kMaxFileBytes - 3, ~std::uint64_t{0} - 2};
        return numbers[random_() % std::size(numbers)];
    }
    std::mt19937 random_;
    NodeId next_node_ = 0;
};

}  // namespace

TEST_CASE("whatever changes a log claims, the records stay sound, and what is refused leaves no trace",
          "[fuse][changes][random]") {
    for (unsigned seed = 1; seed <= 150; ++seed) {
        CAPTURE(seed);
        SetAt at;
        RandomChange random(seed);
        for (int count = 0; count < 150; ++count) {
            const bool is_checked = count % 10 == 0;
            const auto before = is_checked ? test::dump(at.changes) : std::vector<std::string>{};
            const Change change = random.next(at.changes.next_node());
            CAPTURE(count, change.index());
            const int error = at.apply(change);
            REQUIRE((error == 0 || error == EINVAL));
            if (is_checked && error != 0) REQUIRE(test::dump(at.changes) == before);
            if (is_checked) REQUIRE(test::Soundness(at.changes).problems(false) == std::vector<std::string>{});
        }
        at.changes.drop_unnamed();
        REQUIRE(test::Soundness(at.changes).problems(false) == std::vector<std::string>{});
    }
}

TEST_CASE("renaming a folder of the view with 10,000 entries is one record", "[fuse][changes][inodes.records]") {
    SetAt at;
    for (int number = 0; number < 10'000; ++number) at.view.file(kDeep, "entry" + std::to_string(number), "");
    REQUIRE(at.apply(change::Rename{
                .old_parent = kRootNode, .old_name = "deep", .new_parent = kEtc, .new_name = "deep"}) == 0);
    CHECK(at.changes.counts().nodes == 3);
    CHECK(at.changes.counts().names == 2);
    CHECK(at.changes.records().resolve(kDeep, "entry77")->node != 0);
}

TEST_CASE("an error of the view is the answer, and nothing has changed", "[fuse][changes]") {
    SetAt at;
    const auto before = test::dump(at.changes);
    at.view.fail_lookups(true);
    CHECK(at.apply(change::Remove{.parent = kEtc, .name = "motd"}) == EIO);
    at.view.fail_lookups(false);
    CHECK(test::dump(at.changes) == before);
    CHECK(at.apply(change::Remove{.parent = kEtc, .name = "motd"}) == 0);
}

TEST_CASE("with an arena that cannot grow changes end in ENOSPC, and removing makes room again",
          "[fuse][changes][steps.whole][steps.full]") {
    const test::FakeView view;
    const auto arena = *Arena::create(store::UniqueFd(::memfd_create("full", MFD_CLOEXEC | MFD_ALLOW_SEALING)));
    ChangeSet changes(*arena, view);
    REQUIRE(::fcntl(arena->fd(), F_ADD_SEALS, F_SEAL_GROW) == 0);
    std::vector<NodeId> made;
    const auto fill = [&] {
        for (;;) {
            const std::string name = "file" + std::to_string(changes.next_node());
            const NodeId node = changes.next_node();
            const auto applied =
                changes.apply(change::Make{.parent = kRootNode, .name = name, .node = node, .mode = S_IFREG});
            if (!applied) return static_cast<int>(applied.error());
            made.push_back(node);
        }
    };
    CHECK(fill() == ENOSPC);
    CHECK(!changes.reserve(change::Make{}));
    CHECK(made.size() > 100);
    CHECK(test::Soundness(changes).problems().empty());
    for (const NodeId node : std::exchange(made, {})) {
        const std::string name = "file" + std::to_string(node);
        const change::Remove remove{.parent = kRootNode, .name = name};
        REQUIRE(changes.reserve(remove));
        REQUIRE(changes.apply(remove));
        changes.drop(node);
    }
    CHECK(changes.counts().nodes == 1);
    CHECK(fill() == ENOSPC);
    CHECK(made.size() > 100);
}

TEST_CASE("records of files that come and go take no memory in the end", "[fuse][changes]") {
    SetAt at;
    const auto churn = [&](int rounds) {
        for (int round = 0; round < rounds; ++round) {
            const NodeId node = at.changes.next_node();
            REQUIRE(at.apply(change::Make{.parent = kEtc, .name = "tmp", .node = node, .mode = S_IFREG}) == 0);
            for (std::uint64_t part = 0; part < 30; ++part)
                REQUIRE(
                    at.apply(change::Write{
                        .node = node, .offset_bytes = part * 10, .size_bytes = 5, .extent_offset_bytes = part * 100}) ==
                    0);
            REQUIRE(at.apply(change::Remove{.parent = kEtc, .name = "tmp"}) == 0);
            at.changes.drop(node);
        }
    };
    churn(10);
    const auto before = at.changes.counts();
    churn(2000);
    CHECK(at.changes.counts().arena_bytes == before.arena_bytes);
    CHECK(at.changes.counts().nodes == before.nodes);
}
