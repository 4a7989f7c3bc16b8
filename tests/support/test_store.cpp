#include "support/test_store.h"

#include "store/error.h"
#include "store/file.h"
#include "support/catch.h"
#include "support/oci_archive.h"
#include "support/random_bytes.h"
#include "support/tar_builder.h"

#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

namespace lamina::test {

std::string layer_tar(const Files& files) {
    TarBuilder tar;
    for (const auto& [path, body] : files) tar.file(path, body);
    return tar.tar();
}

std::string write_layout(const std::string& folder, const std::vector<NamedImage>& images) {
    TestLayout layout(folder);
    for (const NamedImage& image : images) {
        TestImage description{.name = image.name, .layers = {}};
        for (const Files& files : image.layers) description.layers.push_back({.tar = layer_tar(files)});
        layout.add_image(description);
    }
    layout.finish();
    return "oci:" + folder;
}

std::string some_text(std::size_t size_bytes, unsigned seed) {
    return text_of(text_bytes(size_bytes, seed));
}

std::vector<store::ImageSummary> import_from(store::Store& store, const std::string& source) {
    return store.import({.source = source, .name = std::nullopt, .platform = {"linux", "amd64", ""}}, {});
}

std::string file_of(store::Store& store, const std::string& image, const std::string& path) {
    StringSink out;
    store.read_file(image, path, out);
    return out.text;
}

std::string problems_of(store::Store& store) {
    std::string text;
    for (const std::string& problem : store.verify(true, {}, {}).problems) text += problem + "\n";
    return text;
}

bool has_files(store::Store& store, const std::string& image, const Files& files) {
    for (const auto& [path, body] : files) {
        if (file_of(store, image, path) != body) return false;
    }
    return true;
}

std::uint64_t bytes_on_disk(const std::string& folder) {
    std::uint64_t bytes = 0;
    for (const std::string& name : store::list_folder(folder)) {
        const std::string path = folder + "/" + name;
        struct stat st {};
        REQUIRE(::lstat(path.c_str(), &st) == 0);
        bytes += S_ISDIR(st.st_mode) ? bytes_on_disk(path) : static_cast<std::uint64_t>(st.st_size);
    }
    return bytes;
}

FaultAtStep::FaultAtStep(long step, How how) : left_(step), how_(how) {
    store::g_fault_hook = this;
}

FaultAtStep::~FaultAtStep() {
    store::g_fault_hook = nullptr;
}

void FaultAtStep::before(std::string_view step, std::string_view path) {
    const long left = --left_;
    if (left > 0 || (left < 0 && how_ == How::once)) return;
    has_failed_ = true;
    throw store::Error(store::Errc::no_space, std::string(step) + " " + std::string(path) + ": made to fail");
}

namespace {

class KillAtStep : public store::FaultHook {
public:
    explicit KillAtStep(long step) : left_(step) { store::g_fault_hook = this; }
    void before(std::string_view, std::string_view) override {
        if (--left_ == 0) ::kill(::getpid(), SIGKILL);
    }

private:
    std::atomic<long> left_;
};

}  // namespace

bool killed_at_step(long step, const std::function<void()>& work) {
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        const KillAtStep hook(step);
        try {
            work();
        } catch (const std::exception&) {  // The parent sees it in the exit code; no destructor of a test may run here.
            ::_exit(2);
        }
        ::_exit(0);
    }
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    if (WIFSIGNALED(status)) return true;
    CHECK(WEXITSTATUS(status) == 0);
    return false;
}

}  // namespace lamina::test
