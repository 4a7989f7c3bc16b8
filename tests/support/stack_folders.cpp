#include "support/stack_folders.h"

#include "store/file.h"
#include "support/catch.h"

#include <fcntl.h>

#include <cstdio>

namespace lamina::test {

StackFolders::StackFolders(int lower_count) : StackFolders(lower_count, "/var/tmp") {}

StackFolders::StackFolders(int lower_count, const std::string& parent) : folder_(parent) {
    for (int number = 0; number < lower_count; ++number) {
        lowers.push_back("lower" + std::to_string(number));
        store::make_folder(folder_ / lowers.back());
    }
    for (const char* const name : {"upper", "work", "merged"}) store::make_folder(folder_ / name);
}

void StackFolders::use_upper() {
    has_upper_ = true;
}

void StackFolders::change_by_kernel(const std::string& options, const std::string& text) const {
    const KernelOverlay mounted(layers(), options, folder_ / "merged");
    run_script(mounted.path(), text);
}

void StackFolders::lower_the_upper() {
    const std::string name = "lowered" + std::to_string(lowered_++);
    REQUIRE(std::rename((folder_ / "upper").c_str(), (folder_ / name).c_str()) == 0);
    lowers.insert(lowers.begin(), name);
    store::remove_tree(folder_ / "work");
    store::make_folder(folder_ / "upper");
    store::make_folder(folder_ / "work");
}

KernelOverlay::Layers StackFolders::layers() const {
    KernelOverlay::Layers layers;
    for (const std::string& name : lowers) layers.lowers.push_back(folder_ / name);
    if (has_upper_) {
        layers.upper = folder_ / "upper";
        layers.work = folder_ / "work";
    }
    return layers;
}

unionfs::StackSource StackFolders::source(const std::string& name) const {
    unionfs::StackSource source;
    source.name = name;
    source.folder = store::UniqueFd(::open((folder_ / name).c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    REQUIRE(source.folder);
    return source;
}

std::unique_ptr<unionfs::StackView> StackFolders::view(const unionfs::OverlayXattrs& xattrs) const {
    std::vector<unionfs::StackSource> sources;
    unionfs::StackOptions options;
    if (has_upper_) {
        sources.push_back(source("upper"));
        options.has_upper = true;
        options.work_folder = source("work").folder;
    }
    for (const std::string& name : lowers) sources.push_back(source(name));
    options.xattrs = xattrs;
    options.report = [this](const std::string& line) { reports.push_back(line); };
    return std::make_unique<unionfs::StackView>(std::move(sources), std::move(options));
}

}  // namespace lamina::test
