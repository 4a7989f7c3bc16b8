#include "store/chunk_index.h"
#include "store/chunk_store.h"
#include "store/error.h"
#include "store/file_ops.h"
#include "support/catch.h"
#include "support/pack_folders.h"
#include "support/random_bytes.h"

#include <sys/wait.h>

#include <atomic>
#include <csignal>
#include <string>
#include <vector>

using namespace lamina;
using test::Bytes;
using test::ReadResult;

namespace {

class KillAtStep : public store::FaultHook {
public:
    explicit KillAtStep(int step) : left_(step) { store::g_fault_hook = this; }
    void before(std::string_view, std::string_view) override {
        if (--left_ == 0) ::kill(::getpid(), SIGKILL);
    }

private:
    std::atomic<int> left_;
};

/// All steps but writes, each as "step name-of-file".
class RecordSteps : public store::FaultHook {
public:
    RecordSteps() { store::g_fault_hook = this; }
    ~RecordSteps() override { store::g_fault_hook = nullptr; }
    RecordSteps(const RecordSteps&) = delete;
    RecordSteps& operator=(const RecordSteps&) = delete;
    void before(std::string_view step, std::string_view path) override {
        if (step == "write") return;
        std::string name(path.substr(path.find_last_of('/') + 1));
        if (const auto temporary = name.find(".tmp"); name.starts_with("chunks.list") && temporary != name.npos) {
            name = "chunks.list.tmp";  // Its number is the process's.
        }
        steps.push_back(std::string(step) + " " + name);
    }
    std::vector<std::string> steps;
};

std::vector<Bytes> new_chunks(std::uint64_t seed) {
    return {test::random_bytes(200'000, seed), test::random_bytes(100'000, seed + 1), test::text_bytes(999, seed)};
}

void write_and_index(const test::PackFolders& folders, std::uint32_t number, std::uint64_t seed) {
    const auto pack = folders.write(number, new_chunks(seed));
    folders.open()->add_segment(*pack);
}

}  // namespace

TEST_CASE("bytes are synced before the name that makes them count", "[store][pack][crash]") {
    const test::PackFolders folders;
    write_and_index(folders, 1, 10);
    RecordSteps record;
    write_and_index(folders, 2, 20);
    CHECK(record.steps ==
          std::vector<std::string>{"create pack-2.tmp", "fsync pack-2.tmp", "rename pack-0000000002.lpk", "fsync packs",
                                   "unlink chunks-0000000000000002.idx.new", "create chunks-0000000000000002.idx.new",
                                   "fsync chunks-0000000000000002.idx.new", "rename chunks-0000000000000002.idx",
                                   "fsync packs", "create chunks.list.tmp", "fsync chunks.list.tmp",
                                   "rename chunks.list", "fsync packs", "unlink chunks-0000000000000001.idx"});
}

TEST_CASE("a process killed at any step leaves whole packs, an index that can be opened, and no trace in the end",
          "[store][pack][crash]") {
    for (int step = 1;; ++step) {
        CAPTURE(step);
        REQUIRE(step < 100);
        const test::PackFolders folders;
        write_and_index(folders, 1, 10);
        const pid_t child = ::fork();
        REQUIRE(child >= 0);
        if (child == 0) {
            KillAtStep hook(step);
            try {
                write_and_index(folders, 2, 20);
            } catch (const store::Error&) {
                ::_exit(1);
            }
            ::_exit(0);
        }
        int status = 0;
        ::waitpid(child, &status, 0);
        REQUIRE((WIFSIGNALED(status) || WEXITSTATUS(status) == 0));

        const auto chunks = folders.open();
        const bool is_there = store::exists(folders.path(2));
        if (is_there) CHECK(store::check_pack(folders.packs, 2, true, nullptr).empty());
        CHECK(store::check_chunk_index(folders.packs).empty());
        const auto indexed = chunks->indexed_packs();
        CHECK((indexed == std::vector<std::uint32_t>{1} || (is_there && indexed == std::vector<std::uint32_t>{1, 2})));
        for (const Bytes& chunk : new_chunks(10)) CHECK(test::try_read(*chunks, chunk) == ReadResult::right);
        // What the store does at start: it empties staging and indexes what is committed.
        for (const std::string& name : store::list_folder(folders.staging)) {
            store::remove_file(folders.staging + "/" + name);
        }
        if (is_there && indexed.size() == 1) chunks->rebuild({1, 2});
        write_and_index(folders, 3, 30);
        for (const Bytes& chunk : new_chunks(30)) CHECK(test::try_read(*chunks, chunk) == ReadResult::right);
        if (is_there) CHECK(test::try_read(*chunks, new_chunks(20)[0]) == ReadResult::right);
        const std::size_t segment_count = store::ChunkIndex(folders.packs).snapshot()->segments.size();
        CHECK(store::list_folder(folders.packs).size() == 2 + is_there + 1 + segment_count);
        if (!WIFSIGNALED(status)) break;
    }
}
