#include "fuse/arena.h"

#include "fuse/arena_hash.h"
#include "fuse/arena_tree.h"
#include "support/catch.h"
#include "support/killed_child.h"
#include "support/temp_dir.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <random>

using namespace lamina;
using namespace lamina::unionfs;

namespace {

struct Pair {
    std::uint64_t left;
    std::uint64_t right;
};

store::UniqueFd another_fd(const Arena& arena) {
    return store::UniqueFd(::fcntl(arena.fd(), F_DUPFD_CLOEXEC, 0));
}

struct Numbered {
    std::uint64_t number;
    Ref<Numbered> hash_next;
    std::uint32_t reserved;
    std::uint64_t hash() const { return mix(number); }
};

auto has_number(std::uint64_t number) {
    return [number](const Numbered& record) { return record.number == number; };
}

}  // namespace

TEST_CASE("what was committed is there for the next process, what was not is not", "[fuse][arena]") {
    const auto arena = *Arena::create();
    Ref<Pair> pair;
    {
        Arena::Transaction transaction(*arena);
        pair = arena->allocate<Pair>();
        arena->fresh(pair) = {1, 2};
        arena->set_root(pair.index);
        transaction.commit();
    }
    {
        Arena::Transaction transaction(*arena);
        arena->edit(pair).left = 7;
        arena->set(arena->get(pair).right, 8);
    }
    CHECK(arena->get(pair).left == 1);
    const auto next = *Arena::attach(another_fd(*arena));
    CHECK(next->root() == pair.index);
    CHECK(next->get(pair).right == 2);
}

TEST_CASE("an inner transaction that is given up leaves the outer one's changes", "[fuse][arena]") {
    const auto arena = *Arena::create();
    Arena::Transaction outer(*arena);
    const auto pair = arena->allocate<Pair>();
    arena->set(arena->get(pair).left, 1);
    {
        Arena::Transaction inner(*arena);
        arena->set(arena->get(pair).left, 2);
        arena->set(arena->get(pair).right, 3);
    }
    {
        Arena::Transaction inner(*arena);
        arena->set(arena->get(pair).right, 4);
        inner.commit();
    }
    outer.commit();
    CHECK(arena->get(pair).left == 1);
    CHECK(arena->get(pair).right == 4);
}

TEST_CASE("a change without a transaction is refused", "[fuse][arena]") {
    const auto arena = *Arena::create();
    CHECK_THROWS_AS(arena->set_root(1), store::Error);
}

TEST_CASE("a block that was given back is used again, but not by the transaction that gave it", "[fuse][arena]") {
    const auto arena = *Arena::create();
    Ref<Pair> first;
    {
        Arena::Transaction transaction(*arena);
        first = arena->allocate<Pair>();
        transaction.commit();
    }
    {
        Arena::Transaction transaction(*arena);
        arena->release(first);
        CHECK(arena->allocate<Pair>() != first);
        transaction.commit();
    }
    Arena::Transaction transaction(*arena);
    CHECK(arena->allocate<Pair>() == first);
}

TEST_CASE("blocks of every size are zeroed, apart from each other, and come back", "[fuse][arena]") {
    const auto arena = *Arena::create();
    std::vector<std::uint32_t> first_round;
    for (int round = 0; round < 2; ++round) {
        Arena::Transaction transaction(*arena);
        std::vector<std::pair<std::uint32_t, std::uint64_t>> blocks;
        for (std::uint64_t extra = 0; extra < 5000; extra = extra < 400 ? extra + 1 : extra * 2) {
            const auto block = arena->allocate<char>(extra);
            char* const bytes = &arena->fresh(block);
            CHECK(std::all_of(bytes, bytes + extra + 1, [](char byte) { return byte == 0; }));
            std::memset(bytes, 0x5a, extra + 1);
            blocks.emplace_back(block.index, extra);
        }
        for (const auto& [index, extra] : blocks) arena->release(Ref<char>{index}, extra);
        transaction.commit();
        std::vector<std::uint32_t> indexes;
        for (const auto& block : blocks) indexes.push_back(block.first);
        std::ranges::sort(indexes);
        if (round == 0) first_round = indexes;
        CHECK(indexes == first_round);
    }
}

TEST_CASE("an arena grows far past its first size and keeps its records in place", "[fuse][arena]") {
    const auto arena = *Arena::create();
    std::vector<Ref<Pair>> pairs;
    const Pair* const first = [&] {
        Arena::Transaction transaction(*arena);
        pairs.push_back(arena->allocate<Pair>());
        transaction.commit();
        return &arena->get(pairs.front());
    }();
    for (std::uint64_t round = 1; round < 400; ++round) {
        Arena::Transaction transaction(*arena);
        pairs.push_back(arena->allocate<Pair>(100'000));
        arena->fresh(pairs.back()).left = round;
        transaction.commit();
    }
    CHECK(&arena->get(pairs.front()) == first);
    CHECK(arena->size_bytes() > 40'000'000);
    const auto next = *Arena::attach(another_fd(*arena));
    for (std::uint64_t round = 1; round < 400; ++round) CHECK(next->get(pairs[round]).left == round);
}

TEST_CASE("an arena whose file cannot grow says so and stays as it was", "[fuse][arena]") {
    store::UniqueFd file(::memfd_create("limited", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    const auto arena = *Arena::create(std::move(file));
    Ref<Pair> pair;
    {
        Arena::Transaction transaction(*arena);
        pair = arena->allocate<Pair>();
        transaction.commit();
    }
    REQUIRE(::fcntl(arena->fd(), F_ADD_SEALS, F_SEAL_GROW) == 0);
    CHECK(!arena->reserve(std::uint64_t{1} << 30, 0));
    const auto fill = [&] {
        Arena::Transaction transaction(*arena);
        arena->set(arena->get(pair).left, 9);
        for (int count = 0; count < 1000; ++count) arena->allocate<Pair>(10'000);
        transaction.commit();
    };
    CHECK_THROWS_AS(fill(), store::Error);
    CHECK(arena->get(pair).left == 0);
    Arena::Transaction transaction(*arena);
    arena->set(arena->get(pair).left, 3);
    transaction.commit();
    CHECK(arena->get(pair).left == 3);
}

TEST_CASE("a file that is no arena, or of another version, or cut, is refused", "[fuse][arena]") {
    const auto attach_to = [](store::UniqueFd file) { return Arena::attach(std::move(file)).has_value(); };
    CHECK(!attach_to(store::UniqueFd(::memfd_create("empty", MFD_CLOEXEC))));
    const auto with = [&](std::uint64_t offset, std::uint32_t value) {
        const auto arena = *Arena::create();
        REQUIRE(::pwrite(arena->fd(), &value, sizeof value, static_cast<off_t>(offset)) == sizeof value);
        return attach_to(another_fd(*arena));
    };
    CHECK(with(100, 0));
    CHECK(!with(offsetof(arena_format::Header, magic), 1));
    CHECK(!with(offsetof(arena_format::Header, version), 3));
    CHECK(!with(offsetof(arena_format::Header, log_used_bytes), 24));
    CHECK(!with(offsetof(arena_format::Header, log_used_bytes) + 4, 1));
    CHECK(!with(offsetof(arena_format::Header, log_end), 5));
    CHECK(!with(offsetof(arena_format::Header, data_used_end), 5));
    CHECK(!with(offsetof(arena_format::Header, data_end) + 4, 900));
    const auto arena = *Arena::create();
    REQUIRE(::ftruncate(arena->fd(), static_cast<off_t>(arena_format::kDataOffset)) == 0);
    CHECK(!attach_to(another_fd(*arena)));
}

TEST_CASE("an arena can live in a file", "[fuse][arena]") {
    const test::TempDir folder;
    const std::string path = folder / "arena";
    const auto open = [&] { return store::UniqueFd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600)); };
    {
        const auto arena = *Arena::create(open());
        Arena::Transaction transaction(*arena);
        arena->set_root(77);
        transaction.commit();
    }
    CHECK(!Arena::create(open()).has_value());
    CHECK((*Arena::attach(open()))->root() == 77);
}

TEST_CASE("an answer is found by its request until the kernel has it, exactly if its change was made",
          "[fuse][arena]") {
    const auto arena = *Arena::create();
    const auto seal = [](Arena& in, std::uint64_t unique, bool commits) {
        Arena::Transaction transaction(in);
        in.set_root(static_cast<std::uint32_t>(unique));
        in.seal(unique, unique * 10);
        if (commits) transaction.commit();
    };
    for (std::uint64_t unique = 1; unique <= 3; ++unique) seal(*arena, unique, true);
    seal(*arena, 4, false);
    arena->answered(arena->sealed(2)->slot, 2);
    const auto next = *Arena::attach(another_fd(*arena));
    REQUIRE(next->sealed(1));
    CHECK(next->sealed(1)->value == 10);
    CHECK(!next->sealed(2));
    REQUIRE(next->sealed(3));
    CHECK(next->sealed(3)->value == 30);
    CHECK(!next->sealed(4));

    next->answered(next->sealed(1)->slot, 1);
    seal(*next, 5, true);  // In the place of the first.
    next->forget_former_answers();
    CHECK(!next->sealed(3));
    REQUIRE(next->sealed(5));
    CHECK(next->sealed(5)->value == 50);
}

TEST_CASE("there is room for more answers than threads can owe, and no more", "[fuse][arena]") {
    const auto arena = *Arena::create();
    Arena::Transaction transaction(*arena);
    for (std::uint64_t unique = 1; unique <= arena_format::kAnswerSlots; ++unique) arena->seal(unique, 0);
    CHECK_THROWS_AS(arena->seal(100, 0), store::Error);
    arena->answered(17, 100);  // Not that one's slot.
    CHECK_THROWS_AS(arena->seal(100, 0), store::Error);
    arena->answered(17, 18);
    CHECK(arena->seal(100, 0) == 17);
}

TEST_CASE("a process killed at any step of a transaction leaves all of it or nothing", "[fuse][arena]") {
    const auto arena = *Arena::create();
    Ref<std::array<std::uint64_t, 32>> words;
    {
        Arena::Transaction transaction(*arena);
        words = arena->allocate<std::array<std::uint64_t, 32>>();
        transaction.commit();
    }
    const auto change = [&] {
        Arena::Transaction transaction(*arena);
        for (std::size_t at = 0; at < 32; at += 2) arena->set(arena->get(words)[at], arena->get(words)[at] + 1);
        for (auto& word : arena->edit(words)) word += 10;
        arena->release(arena->allocate<Pair>());
        arena->release(arena->allocate<Pair>(3000));
        arena->seal(1, 7);
        transaction.commit();
    };
    long step = 1;
    for (bool is_killed = true; is_killed; ++step) {
        const auto before = arena->get(words);
        is_killed = test::killed_at_step(step, change);
        const auto next = *Arena::attach(another_fd(*arena));
        auto after = before;
        for (std::size_t at = 0; at < 32; ++at) after[at] += at % 2 == 0 ? 11 : 10;
        CAPTURE(step);
        const bool is_after = next->get(words) == after;
        CHECK((is_after || next->get(words) == before));
        CHECK(next->sealed(1).has_value() == (is_after || before[1] != 0));
    }
    CHECK(step > 50);
}

TEST_CASE("a process killed while it undoes leaves the rest to the next", "[fuse][arena]") {
    const auto arena = *Arena::create();
    Ref<std::array<std::uint64_t, 8>> words;
    {
        Arena::Transaction transaction(*arena);
        words = arena->allocate<std::array<std::uint64_t, 8>>();
        transaction.commit();
    }
    const auto change = [&] {
        Arena::Transaction transaction(*arena);
        for (int round = 0; round < 3; ++round)
            for (const std::uint64_t& word : arena->get(words)) arena->set(word, word + 1);
        transaction.commit();
    };
    REQUIRE(test::killed_at_step(60, change));
    REQUIRE(arena->get(words)[0] != 0);
    for (long step = 1; step < 10; ++step)
        CHECK(test::killed_at_step(step, [&] { (void)Arena::attach(another_fd(*arena)); }));
    const auto next = *Arena::attach(another_fd(*arena));
    CHECK(next->get(words) == std::array<std::uint64_t, 8>{});
}

TEST_CASE("a hash table finds what was put in and nothing else, while it grows and shrinks", "[fuse][arena]") {
    const auto arena = *Arena::create();
    Arena::Transaction transaction(*arena);
    const auto root = arena->allocate<HashRoot>();
    ArenaHash<Numbered> table(*arena, arena->get(root));
    constexpr std::uint64_t kCount = 5000;
    for (std::uint64_t number = 0; number < kCount; ++number) {
        const auto record = arena->allocate<Numbered>();
        arena->fresh(record).number = number;
        table.insert(record);
    }
    for (std::uint64_t number = 0; number < kCount; number += 3)
        table.erase(table.find(mix(number), has_number(number)));
    for (std::uint64_t number = 0; number < kCount + 10; ++number) {
        const bool is_there = number < kCount && number % 3 != 0;
        if (static_cast<bool>(table.find(mix(number), has_number(number))) != is_there) FAIL("number " << number);
    }
    std::uint64_t seen = 0;
    table.for_each([&](Ref<Numbered>) { ++seen; });
    CHECK(seen == table.size());
    CHECK(seen == kCount - (kCount + 2) / 3);
}

TEST_CASE("a tree is a sorted map, whatever the order of changes", "[fuse][arena]") {
    const auto seed = GENERATE(1U, 2U, 3U, 4U);
    CAPTURE(seed);
    std::mt19937 random(seed);
    const auto arena = *Arena::create();
    Arena::Transaction transaction(*arena);
    const auto root = arena->allocate<TreeRoot>();
    ArenaTree tree(*arena, arena->get(root));
    std::map<std::uint64_t, std::uint64_t> model;
    const std::uint64_t keys = seed == 1 ? 40 : 5000;
    for (int round = 0; round < 20'000; ++round) {
        const bool shrinks = (round / 4000) % 2 == 1;
        const std::uint64_t key = seed == 4 && !shrinks ? static_cast<std::uint64_t>(round) : random() % keys;
        const auto found = model.find(key);
        if (found == model.end() && random() % 4 >= (shrinks ? 3U : 0U)) {
            tree.insert({key, key * 2, 0});
            model[key] = key * 2;
        } else if (found != model.end() && random() % 4 == 0) {
            tree.update({key, key * 3, 0});
            found->second = key * 3;
        } else if (found != model.end() && (shrinks || random() % 2 == 0)) {
            tree.erase(key);
            model.erase(found);
        }
        if (round % 50 != 0) continue;
        const std::uint64_t probe = random() % (keys + 2);
        const auto after = model.lower_bound(probe);
        const auto item = tree.first_at_or_after(probe);
        REQUIRE(item.has_value() == (after != model.end()));
        if (item) REQUIRE((item->key == after->first && item->first == after->second));
        const auto before_item = tree.last_at_or_before(probe);
        auto before = model.upper_bound(probe);
        REQUIRE(before_item.has_value() == (before != model.begin()));
        if (before_item) REQUIRE(before_item->key == std::prev(before)->first);
    }
    REQUIRE(tree.size() == model.size());
    auto at = model.begin();
    for (ArenaTree::Cursor cursor(tree, 0); cursor.get(); cursor.next(), ++at)
        REQUIRE((cursor.get()->key == at->first && cursor.get()->first == at->second));
    REQUIRE(at == model.end());
    tree.clear();
    CHECK(!tree.first_at_or_after(0));
}
