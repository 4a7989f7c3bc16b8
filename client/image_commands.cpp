// import, save, images, inspect, tag, rmi, pin, unpin, ls, cat: what deals with images.

#include "client/commands.h"
#include "client/output.h"

#include <fmt/format.h>

#include <ctime>
#include <filesystem>
#include <memory>

namespace lamina::client {

namespace json = boost::json;

namespace {

constexpr std::string_view kSourceHelp =
    "oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:NAME:TAG] or dir:DIR; without TAG all images of it";

std::string first_name(const api::Image& image) {
    return image.names.empty() ? "<none>" : image.names.front();
}

void print_imported(const Globals& globals, const json::value& result) {
    if (globals.json) return print_json(result);
    for (const api::Image& image : api::parse_reply<api::Images>(result).images) {
        print_text(fmt::format("{}  {}\n", short_digest(image.id), printable(first_name(image))));
    }
}

void print_images(const Globals& globals, bool only_ids) {
    const json::value reply = globals.connect().get(std::string(api::path::kImages));
    if (globals.json) return print_json(reply);
    Table table({{"NAME"},
                 {"IMAGE ID"},
                 {"LAYERS", true},
                 {"FILES", true},
                 {"SIZE", true},
                 {"IMPORTED"},
                 {"STATE"},
                 {"PINNED"}});
    for (const api::Image& image : api::parse_reply<api::Images>(reply).images) {
        if (only_ids) {
            print_text(short_digest(image.id) + "\n");
            continue;
        }
        std::vector<std::string> names = image.names;
        if (names.empty()) names.emplace_back("<none>");
        for (const std::string& name : names) {
            table.add({printable(name), short_digest(image.id), std::to_string(image.layers.size()),
                       std::to_string(image.inode_count), human_bytes(image.logical_bytes),
                       human_age(image.imported_at), image.state, image.pinned ? "yes" : ""});
        }
    }
    if (!only_ids) table.print();
}

char type_letter(std::string_view type) {
    if (type == "directory") return 'd';
    if (type == "symlink") return 'l';
    if (type == "char") return 'c';
    if (type == "block") return 'b';
    if (type == "fifo") return 'p';
    if (type == "socket") return 's';
    return '-';
}

std::string mode_text(const api::ListedName& entry) {
    std::string text(1, type_letter(entry.type));
    constexpr std::string_view letters = "rwxrwxrwx";
    for (unsigned bit = 0; bit < 9; ++bit) text += (entry.mode >> (8 - bit) & 1) != 0 ? letters[bit] : '-';
    const auto special = [&](unsigned mask, std::size_t at, char letter) {
        if ((entry.mode & mask) == 0) return;
        text[at] = text[at] == 'x' ? letter : static_cast<char>(std::toupper(letter));
    };
    special(04000, 3, 's');
    special(02000, 6, 's');
    special(01000, 9, 't');
    return text;
}

void print_listing(const Globals& globals, const std::string& image, const std::string& path, bool is_long) {
    const json::value reply =
        globals.connect().get(with_query(api::path::kImageList, {{"image", image}, {"path", path}}));
    if (globals.json) return print_json(reply);
    std::string out;
    for (const api::ListedName& entry : api::parse_reply<api::Listing>(reply).entries) {
        const std::string link = is_long && entry.type == "symlink" ? " -> " + printable(entry.link_target) : "";
        if (is_long) {
            const bool is_device = entry.type == "char" || entry.type == "block";
            const std::string size = is_device ? fmt::format("{},{}", entry.device_major, entry.device_minor)
                                               : std::to_string(entry.size_bytes);
            const std::time_t seconds = entry.mtime_seconds;
            std::tm parts{};
            ::gmtime_r(&seconds, &parts);
            char time_text[40] = "";
            std::strftime(time_text, sizeof time_text, "%Y-%m-%d %H:%M", &parts);
            out += fmt::format("{} {:>3} {:>5} {:>5} {:>10} {} ", mode_text(entry), entry.nlink, entry.uid, entry.gid,
                               size, time_text);
        }
        out += printable(entry.path) + link + "\n";
    }
    print_text(out);
}

struct ImageArguments {
    std::string source, name, platform, image, target, path = "/";
    std::vector<std::string> names;
    bool flag = false;
};
using Arguments = std::shared_ptr<ImageArguments>;

void add_import(const CommandContext& context) {
    const auto args = std::make_shared<ImageArguments>();
    CLI::App* const command =
        context.app.add_subcommand("import", "Import images from a layout, an archive or a folder");
    command->add_option("SOURCE", args->source, std::string(kSourceHelp))->required();
    command->add_option("--name", args->name, "Name in the store, instead of the source's own");
    command->add_option("--platform", args->platform, "Which image of an image index, as os/architecture[/variant]");
    command->callback([context, args] {
        context.run = [&globals = context.globals, args] {
            Connection connection = globals.connect();
            const api::ImportRequest request{absolute_source(args->source), args->name, args->platform};
            print_imported(globals, post_with_progress(connection, api::path::kImport, api::to_text(request)));
        };
    });
}

void add_save(const CommandContext& context) {
    const auto args = std::make_shared<ImageArguments>();
    CLI::App* const command = context.app.add_subcommand("save", "Write an image to a layout or an archive");
    command->add_option("IMAGE", args->image, "Name or ID of the image")->required();
    command->add_option("TARGET", args->target, "oci:DIR[:TAG], oci-archive:FILE[:TAG] or docker-archive:FILE")
        ->required();
    command->callback([context, args] {
        context.run = [&globals = context.globals, args] {
            Connection connection = globals.connect();
            const api::SaveRequest request{args->image, absolute_source(args->target)};
            const json::value result = post_with_progress(connection, api::path::kSave, api::to_text(request));
            if (globals.json) print_json(result);
        };
    });
}

void add_listing_commands(const CommandContext& context) {
    const auto args = std::make_shared<ImageArguments>();
    CLI::App* const images = context.app.add_subcommand("images", "List the images of the store");
    images->add_flag("-q,--quiet", args->flag, "IDs only");
    images->callback(
        [context, args] { context.run = [&globals = context.globals, args] { print_images(globals, args->flag); }; });

    const auto inspected = std::make_shared<ImageArguments>();
    CLI::App* const inspect = context.app.add_subcommand("inspect", "Show all that is known of an image, as JSON");
    inspect->add_option("IMAGE", inspected->image, "Name or ID of the image")->required();
    inspect->callback([context, inspected] {
        context.run = [&globals = context.globals, inspected] {
            print_json(globals.connect().get(with_query(api::path::kImage, {{"image", inspected->image}})));
        };
    });

    const auto listed = std::make_shared<ImageArguments>();
    CLI::App* const ls = context.app.add_subcommand("ls", "List a folder of an image, without mounting it");
    ls->add_option("IMAGE", listed->image, "Name or ID of the image")->required();
    ls->add_option("PATH", listed->path, "Path inside the image (default /)");
    ls->add_flag("-l", listed->flag, "With mode, owner, size and time (UTC)");
    ls->callback([context, listed] {
        context.run = [&globals = context.globals, listed] {
            print_listing(globals, listed->image, listed->path, listed->flag);
        };
    });

    const auto shown = std::make_shared<ImageArguments>();
    CLI::App* const cat = context.app.add_subcommand("cat", "Print a file of an image, without mounting it");
    cat->add_option("IMAGE", shown->image, "Name or ID of the image")->required();
    cat->add_option("PATH", shown->path, "Path inside the image")->required();
    cat->callback([context, shown] {
        context.run = [&globals = context.globals, shown] {
            globals.connect().download(
                with_query(api::path::kImageFile, {{"image", shown->image}, {"path", shown->path}}),
                [](std::string_view bytes) { print_text(bytes); });
        };
    });
}

void add_tag_and_rmi(const CommandContext& context) {
    const auto tagged = std::make_shared<ImageArguments>();
    CLI::App* const tag = context.app.add_subcommand("tag", "Give an image one more name");
    tag->add_option("IMAGE", tagged->image, "Name or ID of the image")->required();
    tag->add_option("NAME", tagged->names, "New name, with or without tag")->required();
    tag->callback([context, tagged] {
        context.run = [&globals = context.globals, tagged] {
            Connection connection = globals.connect();
            for (const std::string& name : tagged->names) {
                connection.post(api::path::kTag, api::to_text(api::TagRequest{tagged->image, name}));
            }
        };
    });

    const auto removed = std::make_shared<ImageArguments>();
    CLI::App* const rmi = context.app.add_subcommand("rmi", "Remove an image's name, and the image with its last one");
    rmi->add_option("IMAGE", removed->names, "Name or ID of the image")->required();
    rmi->add_flag("-f,--force", removed->flag, "Also when it is pinned, mounts use it, or it has several names");
    rmi->callback([context, removed] {
        context.run = [&globals = context.globals, removed] {
            Connection connection = globals.connect();
            for (const std::string& image : removed->names) {
                connection.remove(
                    with_query(api::path::kImage, {{"image", image}, {"force", removed->flag ? "true" : ""}}));
            }
        };
    });
}

void add_pins(const CommandContext& context) {
    const auto pinned = std::make_shared<ImageArguments>();
    CLI::App* const pin = context.app.add_subcommand("pin", "Keep an image, whatever becomes of its names");
    pin->add_option("IMAGE", pinned->names, "Name or ID of the image")->required();
    pin->callback([context, pinned] {
        context.run = [&globals = context.globals, pinned] {
            Connection connection = globals.connect();
            for (const std::string& image : pinned->names) {
                connection.post(api::path::kPin, api::to_text(api::PinRequest{image}));
            }
        };
    });

    const auto unpinned = std::make_shared<ImageArguments>();
    CLI::App* const unpin = context.app.add_subcommand("unpin", "Take the pin of an image away");
    unpin->add_option("IMAGE", unpinned->names, "Name or ID of the image")->required();
    unpin->callback([context, unpinned] {
        context.run = [&globals = context.globals, unpinned] {
            Connection connection = globals.connect();
            for (const std::string& image : unpinned->names) {
                connection.remove(with_query(api::path::kPin, {{"image", image}}));
            }
        };
    });
}

}  // namespace

std::string absolute_path(const std::string& path) {
    if (path.starts_with('/')) return path;
    return std::filesystem::current_path().string() + "/" + path;
}

std::string absolute_source(const std::string& source) {
    const auto colon = source.find(':');
    if (colon == std::string::npos || colon + 1 == source.size()) return source;
    return source.substr(0, colon + 1) + absolute_path(source.substr(colon + 1));
}

void add_image_commands(const CommandContext& context) {
    add_import(context);
    add_save(context);
    add_listing_commands(context);
    add_tag_and_rmi(context);
    add_pins(context);
}

}  // namespace lamina::client
