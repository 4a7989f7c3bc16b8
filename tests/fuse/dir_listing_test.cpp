#include "fuse/dir_listing.h"

#include "support/catch.h"
#include "support/union_fixture.h"

#include <fcntl.h>

#include <functional>
#include <map>
#include <random>
#include <set>
#include <string>

using namespace lamina;
using namespace lamina::unionfs;
using test::UnionFixture;

namespace {

struct Listed {
    NodeId node = 0;
    std::uint32_t type = 0;
    int times = 0;
};

/// Lists in parts of `part` entries; `between` runs after each.
std::map<std::string, Listed> list_in_parts(UnionFs& fs, NodeId directory, int part,
                                            const std::function<void()>& between) {
    std::map<std::string, Listed> all;
    std::uint64_t cookie = 0;
    for (bool is_last = false; !is_last;) {
        int left = part;
        is_last = true;
        REQUIRE(fs.list(directory, cookie, [&](const ListedEntry& entry) {
            if (left-- == 0) return is_last = false;
            REQUIRE(entry.next_cookie > cookie);
            cookie = entry.next_cookie;
            Listed& listed = all[std::string(entry.name)];
            listed.node = entry.node;
            listed.type = entry.type;
            ++listed.times;
            return true;
        }));
        between();
    }
    return all;
}

void folder_of_twenty(test::FakeView& view) {
    const NodeId folder = view.directory(kRootNode, "folder");
    for (int number = 0; number < 20; ++number) view.file(folder, "view" + std::to_string(number), "v");
}

}  // namespace

TEST_CASE("a listing shows the number that stat shows, also of what was moved, and of the folder's parent",
          "[fuse][union][list]") {
    UnionFixture at([](test::FakeView& view) {
        const NodeId folder = view.directory(kRootNode, "folder");
        view.node(folder).attributes.number = 5000;
        view.node(view.file(folder, "stays", "v")).attributes.number = 6000;
        view.node(view.file(folder, "goes", "v")).attributes.number = 7000;
    });
    const NodeId folder = at.find("folder");
    REQUIRE(at.fs->rename({folder, "goes"}, {folder, "went"}, {}));
    REQUIRE(at.fs->rename({kRootNode, "folder"}, {kRootNode, "moved"}, {}));
    std::map<std::string, std::uint64_t> numbers;
    REQUIRE(at.fs->list(folder, 0, [&](const ListedEntry& entry) {
        numbers[std::string(entry.name)] = entry.number;
        return true;
    }));
    CHECK(numbers == std::map<std::string, std::uint64_t>{{".", 5000}, {"..", 1}, {"stays", 6000}, {"went", 7000}});
    CHECK(at.fs->lookup(folder, "went").value()->attributes.shown_number() == 7000);
    CHECK(at.fs->attributes(folder).value().shown_number() == 5000);
}

TEST_CASE("a name that stays is listed exactly once while all around it changes",
          "[fuse][union][list][listings.once]") {
    for (unsigned seed = 1; seed <= 60; ++seed) {
        CAPTURE(seed);
        std::mt19937 random(seed);
        UnionFixture at(folder_of_twenty);
        std::set<std::string> staying;
        for (int number = 0; number < 20; number += 2) staying.insert("view" + std::to_string(number));
        for (int number = 0; number < 20; ++number) {
            REQUIRE(at.create("/folder/new" + std::to_string(number)));
            if (number % 2 == 0) staying.insert("new" + std::to_string(number));
        }
        int made = 0;
        const auto churn = [&] {
            const std::string odd = std::to_string(random() % 10 * 2 + 1);
            const std::string even = std::to_string(random() % 10 * 2);
            const std::string kind = random() % 2 ? "view" : "new";
            if (random() % 4 == 0) REQUIRE(at.create("/folder/made" + std::to_string(made++)));
            (void)at.rename("/folder/view" + odd, "/folder/" + kind + even);      // Over a name that stays.
            (void)at.rename("/folder/new" + odd, "/folder/" + kind + odd + "x");  // Away.
            (void)at.rename("/folder/new" + even, "/folder/view" + even, {.exchange = true});
            (void)at.unlink("/folder/new" + odd);
            (void)at.create("/folder/view" + odd);
        };
        const auto listed = list_in_parts(*at.fs, at.find("/folder"), 1 + static_cast<int>(random() % 5), churn);
        for (const std::string& name : staying) {
            CAPTURE(name);
            REQUIRE(listed.contains(name));
            CHECK(listed.at(name).times == 1);
        }
    }
}

TEST_CASE("a listing says numbers and types as stat does, and begins with the folder and its parent",
          "[fuse][union][list]") {
    UnionFixture at(folder_of_twenty);
    REQUIRE(at.mkdir("/folder/sub"));
    REQUIRE(at.make("/folder/link", S_IFLNK | 0777, "x"));
    CHECK(at.rename("/folder", "/moved") == 0);
    REQUIRE(at.mkdir("/above"));
    CHECK(at.rename("/moved", "/above/folder") == 0);
    const auto listed = list_in_parts(*at.fs, at.find("/above/folder"), 3, [] {});
    CHECK(listed.at(".").node == at.find("/above/folder"));
    CHECK(listed.at("..").node == at.find("/above"));
    CHECK(listed.size() == 24);
    for (const auto& [name, entry] : listed) {
        if (name == "." || name == "..") continue;
        const auto shown = at.stat("/above/folder/" + name);
        CHECK(shown.node == entry.node);
        CHECK((shown.mode & S_IFMT) == entry.type);
    }
    CHECK(list_in_parts(*at.fs, kRootNode, 3, [] {}).at("..").node == kRootNode);
}

TEST_CASE("a cookie means the same to the next server", "[fuse][union][list][listings.cookies]") {
    UnionFixture at(folder_of_twenty);
    for (int number = 0; number < 20; ++number) REQUIRE(at.create("/folder/new" + std::to_string(number)));
    CHECK(at.unlink("/folder/new5") == 0);
    CHECK(at.unlink("/folder/view5") == 0);
    const NodeId folder = at.find("/folder");
    const auto next_arena = *Arena::attach(store::UniqueFd(::fcntl(at.arena->fd(), F_DUPFD_CLOEXEC, 0)));
    ChangeSet next_changes(*next_arena, at.view);
    UnionFs next(at.view, next_changes, nullptr);
    std::vector<std::pair<std::string, std::uint64_t>> here;
    REQUIRE(at.fs->list(folder, 0, [&](const ListedEntry& entry) {
        here.emplace_back(entry.name, entry.next_cookie);
        return true;
    }));
    REQUIRE(here.size() == 40);
    for (std::size_t number = 0; number + 1 < here.size(); ++number) {
        std::string found;
        REQUIRE(next.list(folder, here[number].second, [&](const ListedEntry& entry) {
            found = entry.name;
            return false;
        }));
        CHECK(found == here[number + 1].first);
    }
}

TEST_CASE("names of the view keep their places, and new ones come in the order of their making",
          "[fuse][union][list][listings.order]") {
    UnionFixture at(folder_of_twenty);
    const auto listed = [&] {
        std::string names;
        REQUIRE(at.fs->list(at.find("/folder"), 2, [&](const ListedEntry& entry) {
            names.append(entry.name).append(" ");
            return true;
        }));
        return names;
    };
    const std::string before = listed();
    CHECK(before.starts_with("view0 view1 view2 "));
    for (const char* const name : {"/folder/z", "/folder/m", "/folder/a", "/over"}) REQUIRE(at.create(name));
    CHECK(listed() == before + "z m a ");
    CHECK(at.rename("/over", "/folder/view1") == 0);
    CHECK(listed() == before + "z m a ");
    CHECK(at.rename("/folder/a", "/folder/z") == 0);
    CHECK(listed() == before + "z m ");
    CHECK(at.unlink("/folder/view1") == 0);
    REQUIRE(at.create("/folder/view1"));
    CHECK(listed() == before + "z m ");
}

TEST_CASE("what is listed is as it was when its part was collected", "[fuse][union][list][listings.parts]") {
    constexpr int kPart = 256;
    UnionFixture at;
    for (int number = 0; number < 2 * kPart; ++number) REQUIRE(at.create("/" + std::to_string(number)));
    std::set<std::string> seen;
    REQUIRE(at.fs->list(kRootNode, 0, [&](const ListedEntry& entry) {
        if (seen.empty()) {  // The first part is collected, the second is not.
            CHECK(at.unlink("/100") == 0);
            CHECK(at.unlink("/500") == 0);
        }
        seen.emplace(entry.name);
        return true;
    }));
    CHECK(seen.contains("100"));
    CHECK(!seen.contains("500"));
    CHECK(seen.contains("499"));
}

TEST_CASE("a listing goes on behind an entry that was removed", "[fuse][union][list]") {
    UnionFixture at(folder_of_twenty);
    for (int number = 0; number < 20; ++number) REQUIRE(at.create("/folder/new" + std::to_string(number)));
    std::set<std::string> seen;
    std::uint64_t cookie = 2;
    for (bool is_last = false; !is_last;) {
        is_last = true;
        std::string name;
        REQUIRE(at.fs->list(at.find("/folder"), cookie, [&](const ListedEntry& entry) {
            name = entry.name;
            cookie = entry.next_cookie;
            return is_last = false;
        }));
        if (name.empty()) break;
        CHECK(seen.insert(name).second);
        CHECK(at.unlink("/folder/" + name) == 0);
    }
    CHECK(seen.size() == 40);
    CHECK(at.rmdir("/folder") == 0);
}

TEST_CASE("a cookie from nowhere ends the listing or shows entries, and harms nothing", "[fuse][union][list]") {
    UnionFixture at(folder_of_twenty);
    REQUIRE(at.create("/folder/new"));
    for (const std::uint64_t cookie :
         {std::uint64_t{23}, std::uint64_t{1000}, std::uint64_t{1} << 40, DirectoryRun::kAdded - 1,
          DirectoryRun::kAdded, DirectoryRun::kAdded * 2, std::uint64_t{1} << 63, ~std::uint64_t{0}}) {
        int count = 0;
        CHECK(at.fs->list(at.find("/folder"), cookie, [&](const ListedEntry&) { return ++count < 100; }));
        CHECK(count <= 1);
    }
    CHECK(UnionFixture::code(at.fs->list(at.find("/folder/new"), 0, [](const auto&) { return true; })) == ENOTDIR);
    CHECK(UnionFixture::code(at.fs->list(12345, 0, [](const auto&) { return true; })) == ENOENT);
}

TEST_CASE("a removed folder that is still held lists nothing, and takes no new names",
          "[fuse][union][list][ops.gone][ops.make]") {
    UnionFixture at(folder_of_twenty);
    REQUIRE(at.mkdir("/gone"));
    const NodeId node = (*at.fs->lookup(kRootNode, "gone"))->attributes.node;
    CHECK(at.rmdir("/gone") == 0);
    CHECK(list_in_parts(*at.fs, node, 5, [] {}).size() == 2);
    CHECK(UnionFixture::code(at.fs->make(node, "x", {.mode = S_IFREG}, {})) == ENOENT);
    CHECK(UnionFixture::code(at.fs->link(at.find("/folder/view1"), node, "x")) == ENOENT);
    CHECK(UnionFixture::code(at.fs->rename({at.find("/folder"), "view1"}, {node, "x"}, {})) == ENOENT);
    CHECK(at.fs->attributes(node)->nlink == 0);
}
