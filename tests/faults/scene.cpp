#include "faults/scene.h"

#include "store/error.h"
#include "store/file.h"
#include "support/disk_gate.h"
#include "support/oci_archive.h"
#include "support/tar_builder.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <stdexcept>

namespace lamina::test {

namespace fs = std::filesystem;
using store::ImageName;
using store::Store;

namespace {

const std::string kShared = some_text(30'000, 21);
const Files kOld{{"a-gone", some_text(90'000, 22)}, {"b-shared", kShared}};
const Files kKept{{"own", some_text(20'000, 23)}, {"shared", kShared}};
const Files kGone{{"gone", some_text(3'000, 26)}};
const Files kNew{{"new", some_text(20'000, 24)}, {"shared", kShared}};
const Files kMore{{"more", some_text(5'000, 25)}};
constexpr std::size_t kQuickPoints = 5;
constexpr const char* kNewName = "new:1";

std::vector<std::string> names_of(Store& store) {
    std::vector<std::string> names;
    for (const auto& image : store.images()) names.insert(names.end(), image.names.begin(), image.names.end());
    return names;
}

bool has_name(Store& store, const std::string& name) {
    return std::ranges::count(names_of(store), name) == 1;
}

std::string wrong_files(Store& store, const std::string& image, const Files& files) {
    try {
        return has_files(store, image, files) ? "" : image + " has wrong bytes\n";
    } catch (const store::Error& error) {
        return image + " cannot be read: " + error.what() + "\n";
    }
}

std::string wrong_image(Store& store, const std::string& name, const std::vector<Files>& layers) {
    if (!has_name(store, name)) return name + " is missing\n";
    std::string wrong;
    for (const Files& files : layers) wrong += wrong_files(store, name, files);
    return wrong;
}

std::string is_there(Store& store, const std::string& name) {
    return has_name(store, name) ? name + " is there\n" : "";
}

/// Names that a finished or failed operation may not leave anywhere.
std::string leftovers_in(const std::string& folder) {
    std::string found;
    if (!store::exists(folder)) return found;
    for (const auto& entry : fs::recursive_directory_iterator(folder)) {
        const std::string name = entry.path().filename();
        const bool is_unfinished = name.find(".tmp") != name.npos || name.ends_with(".new");
        if (is_unfinished || entry.path().parent_path().filename() == "staging") found += "left: " + name + "\n";
    }
    return found;
}

/// What a process that died in the middle of things may have left, and more.
void leave_things(const std::string& root) {
    write_text(root + "/staging/job-7/pack-9.tmp", "half a pack");
    write_text(root + "/layers/" + std::string(64, '0') + ".recipe", "a recipe that no row names");
    write_text(root + "/trees/" + std::string(64, '1') + ".tree", "a tree that no row names");
    write_text(root + "/mounts/0123456789abcdef/log.1", "a mount without base");
    write_text(root + "/packs/chunks-00000000000000ff.idx.new", "half a segment");
    write_text(root + "/format.tmp1-1", "lamina");
    store::remove_file(root + "/packs/chunks.list");
}

}  // namespace

Scene::Scene() {
    make_template();
    add_imports();
    add_saves();
    add_changes();
}

void Scene::make_template() {
    write_layout(folder_ / "layout", {{kNewName, {kNew, kMore}}});
    write_text(folder_ / "new.oci.tar", tar_of_folder(folder_ / "layout"));
    for (const Files& files : {kNew, kMore}) {
        for (const auto& [path, body] : files) write_text((folder_ / "dir/") + path, body);
    }
    {
        const auto scratch = Store::open(folder_ / "scratch");
        import_from(*scratch, "oci:" + (folder_ / "layout"));
        scratch->save({.image = kNewName, .target = "docker-archive:" + (folder_ / "new.docker.tar"), .progress = {}},
                      {});
    }
    const auto opened = Store::open(folder_ / "template");
    import_from(*opened, write_layout(folder_ / "old", {{"old:1", {kOld}}}));
    base_ = import_from(*opened, write_layout(folder_ / "kept", {{"kept:1", {kKept}}}));
    import_from(*opened, write_layout(folder_ / "gone", {{"gone:1", {kGone}}}));
    opened->remove_image("old:1", false);
    mount_ = opened->create_mount("kept:1", "/mnt/there", false);
}

void Scene::add_imports() {
    const auto done = [](Store& store) { return wrong_image(store, kNewName, {kNew, kMore}); };
    const auto undone = [](Store& store) { return is_there(store, kNewName); };
    const auto import = [](const std::string& source) {
        return [source](Store& store) {
            store.import({.source = source, .name = ImageName::parse(kNewName), .platform = {"linux", "amd64", ""}},
                         {});
        };
    };
    const auto add = [&](const std::string& name, const std::string& source) {
        operations_.push_back({.name = name, .run = import(source), .why_not_done = done, .why_not_undone = undone});
    };
    add("import oci", "oci:" + (folder_ / "layout"));
    add("import oci-archive", "oci-archive:" + (folder_ / "new.oci.tar"));
    add("import docker-archive", "docker-archive:" + (folder_ / "new.docker.tar"));
    add("import dir", "dir:" + (folder_ / "dir"));
    operations_.push_back({.name = "first import",
                           .run = import("oci:" + (folder_ / "layout")),
                           .why_not_done = done,
                           .why_not_undone = undone,
                           .starts_empty = true});
}

/// Empty: a whole image of kept:1 lies there.
std::string Scene::import_of(const std::string& target) const {
    const TempDir scratch("/dev/shm");
    const auto opened = Store::open(scratch / "s");
    try {
        import_from(*opened, target);
    } catch (const store::Error& error) {
        return target + ": " + error.what() + "\n";
    }
    return wrong_image(*opened, "kept:1", {kKept});
}

void Scene::add_saves() {
    const std::string out = work_folder() + "/out";
    for (const std::string kind : {"oci", "oci-archive", "docker-archive"}) {
        const std::string path = out + "/saved";
        const std::string target = kind + ":" + path + (kind == "oci" ? ":kept" : "");
        const std::string what = kind == "oci" ? path + "/index.json" : path;
        const auto imported = kind == "oci" ? "oci:" + path + ":kept" : target;
        const auto whole = [this, imported, what](Store&) {
            if (!store::exists(what)) return what + " is missing\n";
            const TempDir scratch("/dev/shm");
            const auto opened = Store::open(scratch / "s");
            try {
                opened->import(
                    {.source = imported, .name = ImageName::parse("kept:1"), .platform = {"linux", "amd64", ""}}, {});
            } catch (const store::Error& error) {
                return imported + ": " + error.what() + "\n";
            }
            return wrong_image(*opened, "kept:1", {kKept});
        };
        operations_.push_back(
            {.name = "save " + kind,
             .run =
                 [target, what](Store& store) {
                     try {
                         store.save({.image = "kept:1", .target = target, .progress = {}}, {});
                     } catch (const store::Error& error) {  // The try before had come to its end.
                         if (error.code() != store::Errc::already_exists) throw;
                     }
                 },
             .why_not_done = whole,
             .why_not_undone = [what](Store&) { return store::exists(what) ? what + " is there\n" : ""; },
             .is_save = true});
    }
}

void Scene::add_changes() {
    const auto add = [&](Operation operation) { operations_.push_back(std::move(operation)); };
    const auto nothing = [](Store&) { return std::string(); };
    add({.name = "commit",
         .run =
             [this](Store& store) {
                 TextSource tar(layer_tar(kMore));
                 store.commit({.base_config_digest = base_.at(0).config.digest.text(),
                               .base_layers = base_.at(0).layers,
                               .name = ImageName::parse(kNewName),
                               .created_by = "test",
                               .progress = {}},
                              tar, {});
             },
         .why_not_done =
             [](Store& store) {
                 return wrong_image(store, kNewName, {kKept, kMore});
             },
         .why_not_undone = [](Store& store) { return is_there(store, kNewName); }});
    add({.name = "tag",
         .run = [](Store& store) { store.tag("kept:1", ImageName::parse("tagged:1")); },
         .why_not_done = [](Store& store) { return wrong_image(store, "tagged:1", {kKept}); },
         .why_not_undone = [](Store& store) { return is_there(store, "tagged:1"); }});
    add({.name = "rmi",
         .run =
             [](Store& store) {
                 if (has_name(store, "gone:1")) store.remove_image("gone:1", false);
             },
         .why_not_done = [](Store& store) { return is_there(store, "gone:1"); },
         .why_not_undone = [](Store& store) { return wrong_image(store, "gone:1", {kGone}); }});
    add({.name = "gc",
         .run = [](Store& store) { store.gc(false, {}); },
         .why_not_done = nothing,
         .why_not_undone = nothing});
    add({.name = "upkeep",
         .run = [](Store& store) { store.upkeep({.scrubs = true, .progress = {}}, {}); },
         .why_not_done = nothing,
         .why_not_undone = nothing});
    add({.name = "create mount",
         .run = [](Store& store) { store.create_mount("kept:1", "/mnt/here", true); },
         .why_not_done = nothing,
         .why_not_undone = nothing});
    add({.name = "discard mount",
         .run =
             [this](Store& store) {
                 if (store::exists(store.root() + "/mounts/" + mount_)) store.discard_mount(mount_);
             },
         .why_not_done =
             [this](Store& store) {
                 return store::exists(store.root() + "/mounts/" + mount_ + "/base") ? "the mount is there\n" : "";
             },
         .why_not_undone = nothing});
    add({.name = "open", .run = {}, .why_not_done = nothing, .why_not_undone = nothing});
}

const Operation& Scene::operation(const std::string& name) const {
    const auto found = std::ranges::find(operations_, name, &Operation::name);
    if (found == operations_.end()) throw std::runtime_error("no operation " + name);
    return *found;
}

std::string Scene::fresh(const Operation& operation) const {
    const std::string root = work_folder() + "/store";
    fs::remove_all(work_folder());
    fs::create_directories(work_folder() + "/out");
    if (operation.starts_empty) return root;
    fs::copy(folder_ / "template", root, fs::copy_options::recursive);
    if (operation.name == "open") leave_things(root);
    return root;
}

std::string Scene::problems(Store& store, const Operation& operation) const {
    std::string found = problems_of(store);
    if (!operation.starts_empty) found += wrong_image(store, "kept:1", {kKept});
    if (!operation.starts_empty && operation.name != "rmi") found += wrong_image(store, "gone:1", {kGone});
    const std::string not_done = operation.why_not_done(store);
    const std::string not_undone = operation.why_not_undone(store);
    if (!not_done.empty() && !not_undone.empty()) found += not_done + not_undone;
    if (found.empty() && !operation.starts_empty && operation.name != "discard mount" &&
        !store::exists(store.root() + "/mounts/" + mount_ + "/base")) {
        found += "the mount is gone\n";
    }
    return found;
}

std::string Scene::problems_at_rest(Store& store, const Operation& operation) const {
    return problems(store, operation) + leftovers_in(store.root());
}

std::string Scene::problems_of_next_try(Store& store, const Operation& operation, Staging staging) const {
    if (operation.run) operation.run(store);
    store.gc(false, {});
    return operation.why_not_done(store) +
           (staging == Staging::is_empty ? problems_at_rest(store, operation) : problems(store, operation));
}

std::string open_and_run(const std::string& root, const Operation& operation) {
    const auto opened = Store::open(root);
    if (operation.run) operation.run(*opened);
    return "";
}

std::vector<CallPoint> call_points(const Scene& scene, const Operation& operation, bool every) {
    std::vector<CallPoint> points;
    std::map<std::string, unsigned> counts;
    const std::string root = scene.fresh(operation);
    const auto judge = [&](const DiskCall& call) {
        const unsigned number = ++counts[call.label()];
        if (every || number == 1) points.push_back({call.label(), number});
        return Verdict{};
    };
    const auto result = run_gated(scene.work_folder(), judge, [&] { return open_and_run(root, operation); });
    if (!result.text.empty()) throw std::runtime_error(operation.name + ": " + result.text);
    return every ? points : some_of(points, kQuickPoints);
}

}  // namespace lamina::test
