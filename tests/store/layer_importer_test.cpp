#include "store/layer_importer.h"

#include "store/chunker.h"
#include "store/error.h"
#include "store/file.h"
#include "store/file_ops.h"
#include "store/layer_stream.h"
#include "support/catch.h"
#include "support/imported_layer.h"
#include "support/oci_archive.h"

#include <sys/wait.h>

#include <cstdlib>

using namespace lamina;
using Catch::Matchers::ContainsSubstring;

namespace {

/// Runs a shell command in `folder`; true when it ends with 0.
bool shell(const std::string& folder, const std::string& command) {
    const int status = std::system(("cd '" + folder + "' && " + command).c_str());
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

/// A folder with what tar programs have trouble with; xattrs where the file system takes them.
void make_tree(const std::string& folder) {
    REQUIRE(
        shell(folder,
              "mkdir -p t/d && cd t && printf hello > file && ln file hard && ln -s /some/where link && mkfifo pipe && "
              "truncate -s 3M sparse && printf data | dd of=sparse bs=1 seek=1000000 conv=notrunc status=none && "
              "printf long > d/$(printf 'n%.0s' $(seq 1 90)) && touch -d '1960-01-01 00:00:00.5 UTC' d && "
              "head -c 300000 /dev/urandom > big && : > empty && chmod 4755 file && "
              "{ setfattr -n user.colour -v blue file 2>/dev/null || true; }"));
}

std::string size_text(const store::LayerEntry& entry) {
    return entry.path + " " + std::to_string(entry.size_bytes);
}

class StepHook : public store::FaultHook {
public:
    explicit StepHook(int step) : left_(step) { store::g_fault_hook = this; }
    ~StepHook() override { store::g_fault_hook = nullptr; }
    void before(std::string_view step, std::string_view) override {
        if (--left_ == 0) throw store::Error(store::Errc::no_space, std::string(step));
    }
    bool has_struck() const { return left_ <= 0; }

private:
    int left_;
};

}  // namespace

TEST_CASE("a layer comes back byte for byte, and its diff ID covers all of it", "[store][layer]") {
    const std::string tar = test::TarBuilder()
                                .folder("etc")
                                .file("etc/motd", "hello")
                                .file("etc/empty", "")
                                .file("big", std::string(300'000, 'x') + "end")
                                .symlink("link", "etc/motd")
                                .hardlink("hard", "etc/motd")
                                .device("null", '3', {1, 3})
                                .fifo("pipe")
                                .tar() +
                            "what follows the end marker";
    const auto imported = test::import_tar(tar);
    CHECK(imported->layer.diff_id.digest == store::Digest::of(store::as_bytes(tar)));
    CHECK(imported->layer.tar_bytes == tar.size());
    CHECK(imported->layer.entry_count == 8);
    CHECK(imported->tar() == tar);
}

TEST_CASE("a layer comes back byte for byte whatever wrote it", "[store][layer]") {
    const test::TempDir folder;
    make_tree(folder.path());
    const std::vector<std::string> commands = {
        "tar --format=posix --xattrs -cf out.tar -C t .",
        "tar --format=gnu -cf out.tar -C t .",
        "tar --format=oldgnu -cf out.tar -C t .",
        "tar --format=ustar --mtime=@1 -cf out.tar -C t .",
        "tar --format=v7 --mtime=@1 --exclude ./pipe -cf out.tar -C t . 2>/dev/null",
        "tar --format=gnu -Scf out.tar -C t .",
        "tar --format=posix --sparse-version=0.0 -Scf out.tar -C t .",
        "tar --format=posix --sparse-version=0.1 -Scf out.tar -C t .",
        "tar --format=posix --sparse-version=1.0 -Scf out.tar -C t .",
        "python3 -c \"import tarfile; tarfile.open('out.tar', 'w', format=tarfile.PAX_FORMAT).add('t', '.')\"",
        "python3 -c \"import tarfile; tarfile.open('out.tar', 'w', format=tarfile.GNU_FORMAT).add('t', '.')\"",
    };
    for (const std::string& command : commands) {
        CAPTURE(command);
        REQUIRE(shell(folder.path(), command));
        const std::string tar = test::read_text(folder / "out.tar");
        const auto imported = test::import_tar(tar);
        const bool is_same = imported->tar() == tar;
        CHECK(is_same);
        CHECK(imported->body("sparse") == test::read_text(folder / "t/sparse"));
        CHECK(imported->body("big") == test::read_text(folder / "t/big"));
        CHECK(imported->body("d/" + std::string(90, 'n')) == "long");
        CHECK(imported->entry("link").metadata.link_target == "/some/where");
        const auto file = imported->entry("file");
        const auto hard = imported->entry("hard");
        CHECK((file.is_hardlink ? file.hardlink_target == "hard" : hard.hardlink_target == "file"));
        const bool is_sparse = command.find(" -Scf") != std::string::npos;
        bool has_hole = false;
        for (const auto& part : imported->entry("sparse").content) has_hole = has_hole || part.is_hole;
        CHECK(has_hole == is_sparse);
    }
}

TEST_CASE("times before 1970 and parts of seconds come from every dialect that has them", "[store][layer]") {
    const test::TempDir folder;
    make_tree(folder.path());
    REQUIRE(shell(folder.path(), "tar --format=posix -cf out.tar -C t . && tar --format=gnu -cf gnu.tar -C t ."));
    CHECK(test::import_tar(test::read_text(folder / "out.tar"))->entry("d").metadata.mtime ==
          store::Timestamp{-315'619'200, 500'000'000});
    CHECK(test::import_tar(test::read_text(folder / "gnu.tar"))->entry("d").metadata.mtime.seconds == -315'619'200);
}

TEST_CASE("equal files are one set of chunks, and an insertion changes few", "[store][layer]") {
    std::string body;
    for (int i = 0; i < 200'000; ++i) body += std::to_string(i * 7919 % 100'003) + ' ';
    const auto imported = test::import_tar(test::TarBuilder()
                                               .file("a", body)
                                               .file("b", body)
                                               .file("c", body.substr(0, 500'000) + "inserted" + body.substr(500'000))
                                               .tar());
    const auto a = imported->entry("a").content;
    CHECK(a == imported->entry("b").content);
    CHECK(a.size() >= 5);
    CHECK(imported->chunks.chunks.size() <= a.size() + 4);
}

TEST_CASE("a layer that is refused leaves no recipe, and names what is wrong", "[store][layer]") {
    const test::TempDir folder;
    test::MemoryChunks chunks;
    test::TextSource source(test::TarBuilder().file("ok", "x").file("../escape", "y").tar());
    const std::string error = test::error_of([&] { store::import_layer(source, chunks, folder / "recipe", {}, {}); });
    CHECK(error == "malformed: layer tar, offset 1024: entry \"../escape\": path has \"..\"");
    CHECK(store::list_folder(folder.path()).empty());
}

TEST_CASE("an error of the source or of the chunk store comes through, and leaves no recipe", "[store][layer]") {
    class Failing : public store::ByteSource {
    public:
        std::size_t read(std::span<std::byte>) override { throw store::Error(store::Errc::unavailable, "no network"); }
    };
    class Full : public store::ChunkSink {
    public:
        store::ChunkId add(std::span<const std::byte>) override { throw store::Error(store::Errc::no_space, "full"); }
    };
    const test::TempDir folder;
    test::MemoryChunks chunks;
    Failing failing;
    CHECK(test::error_of([&] { store::import_layer(failing, chunks, folder / "recipe", {}, {}); }) ==
          "unavailable: no network");
    Full full;
    test::TextSource source(test::TarBuilder().file("a", "x").tar());
    CHECK(test::error_of([&] { store::import_layer(source, full, folder / "recipe", {}, {}); }) == "no_space: full");
    CHECK(store::list_folder(folder.path()).empty());
}

TEST_CASE("a disk that fails at any step fails the import and leaves no recipe", "[store][layer]") {
    const std::string tar = test::TarBuilder().file("a", "hello").file("b", std::string(100'000, 'x')).tar();
    bool has_struck = true;
    int step = 1;
    for (; has_struck; ++step) {
        CAPTURE(step);
        const test::TempDir folder;
        test::MemoryChunks chunks;
        test::TextSource source(tar);
        const StepHook hook(step);
        const std::string error =
            test::error_of([&] { store::import_layer(source, chunks, folder / "recipe", {}, {}); });
        has_struck = hook.has_struck();
        CHECK(error.starts_with("no_space: ") == has_struck);
        CHECK(store::list_folder(folder.path()).empty() == has_struck);
    }
    CHECK(step > 6);
}

TEST_CASE("an import that is asked to stop stops before it reads on", "[store][layer]") {
    std::stop_source stop;
    class Stopping : public store::ByteSource {
    public:
        explicit Stopping(std::stop_source& stop) : stop_(stop) {}
        std::size_t read(std::span<std::byte> out) override {
            std::ranges::fill(out, std::byte{0});
            read_bytes += out.size();
            if (read_bytes >= 5u << 20) stop_.request_stop();
            return out.size();
        }
        std::uint64_t read_bytes = 0;

    private:
        std::stop_source& stop_;
    };
    const test::TempDir folder;
    test::MemoryChunks chunks;
    Stopping endless(stop);
    CHECK_THAT(test::error_of([&] { store::import_layer(endless, chunks, folder / "r", {}, stop.get_token()); }),
               ContainsSubstring("cancelled: "));
    CHECK(endless.read_bytes <= 6u << 20);
    CHECK(store::list_folder(folder.path()).empty());
}

TEST_CASE("an existing file is never taken for a new recipe", "[store][layer]") {
    const test::TempDir folder;
    test::write_text(folder / "recipe", "mine");
    test::MemoryChunks chunks;
    test::TextSource source("");
    CHECK_THAT(test::error_of([&] { store::import_layer(source, chunks, folder / "recipe", {}, {}); }),
               ContainsSubstring("already_exists: "));
    CHECK(test::read_text(folder / "recipe") == "mine");
}

TEST_CASE("a file of 10 GiB that is a hole costs one entry", "[store][layer]") {
    const std::string tar = test::TarBuilder().sparse("hole", 10ull << 30, {{10ull << 30, 0}}, "").tar();
    const auto imported = test::import_tar(tar);
    const auto entry = imported->entry("hole");
    CHECK(size_text(entry) == "hole 10737418240");
    CHECK(entry.content == store::Content{store::ContentPart::hole(10ull << 30)});
    CHECK(imported->chunks.chunks.empty());
}

TEST_CASE("a body of 8 GiB that is not there is refused", "[store][layer]") {
    const std::string tar =
        test::TarBuilder().pax({{"size", std::to_string(8ull << 30)}}).raw({.name = "big"}, "x").open_tar();
    CHECK_THAT(test::error_of([&] { test::import_tar(tar); }), ContainsSubstring("before its body does"));
}

TEST_CASE("a compressed layer is imported in one pass", "[store][layer]") {
    const std::string tar = test::TarBuilder().file("a", std::string(3'000'000, 'a')).file("b", "tail").tar();
    const std::string blob = test::gzipped(tar);
    const test::TempDir folder;
    test::MemoryChunks chunks;
    const auto stream =
        store::LayerStream::open(std::make_unique<test::TextSource>(blob), store::Compression::gzip,
                                 {store::BlobDigest{store::Digest::of(store::as_bytes(blob))}, blob.size()}, {});
    const auto layer = store::import_layer(*stream, chunks, folder / "recipe", {}, {});
    CHECK(layer.diff_id.digest == store::Digest::of(store::as_bytes(tar)));
    CHECK(stream->blob_bytes_read() == blob.size());
}
