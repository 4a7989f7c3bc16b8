#include "store/error.h"
#include "store/file.h"
#include "store/store.h"
#include "support/catch.h"
#include "support/oci_archive.h"
#include "support/random_bytes.h"
#include "support/tar_builder.h"
#include "support/temp_dir.h"
#include "support/test_store.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

// One bit of one byte of a store is turned, before it is opened. Whatever is asked then is answered rightly or not at
// all; and once the bit is turned back everything is there again: nothing was taken for rubbish because of it. With
// LAMINA_EVERY it is every byte, and 10,000 in a larger store; without it some hundred, spread evenly.

using namespace lamina;
using store::Store;

namespace {

namespace fs = std::filesystem;

constexpr std::size_t kQuickFlips = 300;
constexpr std::size_t kQuickRandomFlips = 40;
constexpr std::size_t kRandomFlips = 10'000;

bool does_every() {
    return std::getenv("LAMINA_EVERY") != nullptr;
}

struct Question {
    std::string what;
    std::function<std::string(Store&)> ask;
};

std::string text_of(const store::ImageSummary& image) {
    std::string text = image.manifest.digest.text() + image.config.digest.text() + image.tree.digest.text();
    for (const std::string& name : image.names) text += " " + name;
    for (const auto& layer : image.layers) text += " " + layer.digest.text();
    return text + " " + image.platform.text() + " " + image.created + " " + std::to_string(image.imported_at) + " " +
           std::to_string(image.logical_bytes) + " " + std::to_string(image.inode_count);
}

std::string images_text(Store& store) {
    std::string text;
    for (const auto& image : store.images()) text += text_of(image) + "\n";
    return text;
}

std::string details_text(Store& store, const std::string& image) {
    const auto details = store.inspect(image);
    std::string text = text_of(details.summary) + details.manifest_json + details.config_json;
    for (const auto& layer : details.layers) {
        text += layer.diff_id.digest.text() + std::to_string(layer.tar_bytes) + " " + std::to_string(layer.entry_count);
    }
    return text;
}

std::string listing_text(Store& store, const std::string& image, const std::string& folder) {
    std::string text;
    for (const auto& entry : store.list(image, folder)) {
        const auto& is = entry.attributes;
        text += entry.path + " " + std::to_string(int(is.type)) + " " + std::to_string(is.mode) + " " +
                std::to_string(is.uid) + ":" + std::to_string(is.gid) + " " + std::to_string(is.size_bytes) + " " +
                std::to_string(is.mtime.seconds) + " " + entry.link_target + "\n";
        if (is.type == store::FileType::directory) text += listing_text(store, image, entry.path);
    }
    return text;
}

/// A store in memory, what there is to ask of it, and the right answers.
class Subject {
public:
    Subject(const std::vector<test::NamedImage>& images) {
        const auto opened = Store::open(folder_ / "template");
        test::import_from(*opened, test::write_layout(folder_ / "layout", images));
        mount_ = opened->create_mount(images.front().name, "/mnt", false);
        ask("images", images_text);
        for (const auto& image : images) {
            ask("details of " + image.name, [name = image.name](Store& s) { return details_text(s, name); });
            ask("listing of " + image.name, [name = image.name](Store& s) { return listing_text(s, name, "/"); });
            for (const auto& files : image.layers) {
                for (const auto& [path, body] : files) {
                    ask(image.name + " " + path,
                        [name = image.name, path](Store& s) { return test::file_of(s, name, path); });
                }
            }
        }
        for (const Question& question : questions_) answers_.push_back(question.ask(*opened));
    }

    /// All files of the store with their sizes, below its root.
    std::vector<std::pair<std::string, std::size_t>> files() const {
        std::vector<std::pair<std::string, std::size_t>> found;
        for (const auto& entry : fs::recursive_directory_iterator(folder_ / "template")) {
            const std::string name = fs::relative(entry.path(), folder_ / "template");
            if (entry.is_regular_file() && name != "lock") found.emplace_back(name, entry.file_size());
        }
        std::ranges::sort(found);
        return found;
    }

    /// Turns a bit and looks. What is wrong; empty: nothing.
    std::string flip(const std::string& file, std::size_t offset) {
        const std::string root = folder_ / "store";
        fs::remove_all(root);
        fs::copy(folder_ / "template", root, fs::copy_options::recursive);
        const auto mask = std::byte{1} << (offset % 8);
        turn(root + "/" + file, offset, mask);
        const std::string changed = test::read_text(root + "/" + file);
        std::string wrong = look(root, false);
        if (store::exists(root + "/" + file) && test::read_text(root + "/" + file) == changed) {
            turn(root + "/" + file, offset, mask);
        }
        return wrong + look(root, true);
    }

    std::size_t found_count = 0;     ///< Flips that were told of.
    std::size_t harmless_count = 0;  ///< That changed nothing that anybody can see.

private:
    void ask(const std::string& what, std::function<std::string(Store&)> question) {
        questions_.push_back({what, std::move(question)});
    }

    static void turn(const std::string& path, std::size_t offset, std::byte mask) {
        std::byte byte{};
        store::File file = store::File::open_append(path);
        store::read_exact(file.fd(), offset, {&byte, 1}, path);
        byte ^= mask;
        file.write_at(offset, {&byte, 1});
    }

    std::string look(const std::string& root, bool must_be_sound) {
        std::string wrong;
        bool is_found = false;
        try {
            const auto opened = Store::open(root);
            for (std::size_t i = 0; i < questions_.size(); ++i) {
                try {
                    if (questions_[i].ask(*opened) != answers_[i]) wrong += "wrong " + questions_[i].what + "\n";
                } catch (const store::Error& error) {
                    is_found = true;
                    if (must_be_sound) wrong += questions_[i].what + ": " + error.what() + "\n";
                }
            }
            const std::string problems = test::problems_of(*opened);
            is_found = is_found || !problems.empty();
            if (must_be_sound) wrong += problems;
        } catch (const store::Error& error) {
            is_found = true;
            if (must_be_sound) wrong += std::string("not opened: ") + error.what() + "\n";
        }
        if (!must_be_sound) ++(is_found ? found_count : harmless_count);
        return wrong;
    }

    test::TempDir folder_{"/dev/shm"};
    std::vector<Question> questions_;
    std::vector<std::string> answers_;
    std::string mount_;
};

}  // namespace

TEST_CASE("any flipped byte of a store is found or harmless, and nothing is lost by it", "[flips]") {
    Subject subject({{"small:1", {{{"etc/motd", "hello"}, {"bin/tool", test::some_text(600, 1)}}, {{"more", "x"}}}}});
    std::size_t total = 0;
    for (const auto& [file, size] : subject.files()) total += size;
    const std::size_t step = does_every() ? 1 : total / kQuickFlips + 1;
    std::size_t passed = 0;
    for (const auto& [file, size] : subject.files()) {
        const auto found_before = subject.found_count;
        const auto harmless_before = subject.harmless_count;
        for (std::size_t offset = (step - passed % step) % step; offset < size; offset += step) {
            CAPTURE(file, offset);
            CHECK(subject.flip(file, offset) == "");
        }
        passed += size;
        std::printf("%s: %zu bytes, %zu found, %zu harmless\n", file.c_str(), size, subject.found_count - found_before,
                    subject.harmless_count - harmless_before);
    }
    CHECK(subject.found_count > subject.harmless_count);
}

TEST_CASE("random flips in a larger store are found or harmless, and nothing is lost by them", "[flips]") {
    test::Files files;
    for (unsigned i = 0; i < 60; ++i)
        files["d" + std::to_string(i % 7) + "/f" + std::to_string(i)] = test::some_text(1000 + i * 1777, i);
    files["noise"] = test::text_of(test::random_bytes(900'000, 5));
    Subject subject({{"large:1", {files, {{"more", test::some_text(70'000, 99)}}}}});
    std::size_t total = 0;
    for (const auto& [file, size] : subject.files()) total += size;
    std::mt19937_64 random(1);
    for (std::size_t count = 0; count < (does_every() ? kRandomFlips : kQuickRandomFlips); ++count) {
        std::size_t at = random() % total;
        for (const auto& [file, size] : subject.files()) {
            if (at < size) {
                CAPTURE(file, at);
                CHECK(subject.flip(file, at) == "");
                break;
            }
            at -= size;
        }
    }
    std::printf("random: %zu found, %zu harmless\n", subject.found_count, subject.harmless_count);
    CHECK(subject.found_count > subject.harmless_count);
}
