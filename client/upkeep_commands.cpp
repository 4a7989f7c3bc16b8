// gc, verify, df, daemon: the store's upkeep.

#include "client/chart.h"
#include "client/commands.h"
#include "client/output.h"
#include "client/svg.h"

#include <fmt/format.h>

#include <chrono>
#include <cstdlib>
#include <memory>
#include <thread>

namespace lamina::client {

namespace json = boost::json;

namespace {

struct UpkeepArguments {
    bool flag = false;
};

json::value run_with_progress(const Globals& globals, std::string_view path, const std::string& body) {
    Connection connection = globals.connect();
    return post_with_progress(connection, path, body);
}

void run_gc(const Globals& globals, bool is_dry_run) {
    const json::value result = run_with_progress(globals, api::path::kGc, api::to_text(api::GcRequest{is_dry_run}));
    if (globals.json) return print_json(result);
    const auto report = api::parse_reply<api::GcResult>(result);
    print_text(fmt::format("{} {} ({} bytes): {} packs, {} layers, {} trees; {} packs rewritten\n",
                           report.dry_run ? "would free" : "freed", human_bytes(report.freed_bytes), report.freed_bytes,
                           report.packs_removed, report.layers_removed, report.trees_removed, report.packs_rewritten));
    if (report.packs_waiting == 0) return;
    print_text(fmt::format("{} packs are partly dead, but the disk has no room to write what is needed of them anew\n",
                           report.packs_waiting));
}

void run_verify(const Globals& globals, api::VerifyRequest request) {
    if (!request.repair && !request.sources.empty()) {
        throw api::FailureError({"usage", "a SOURCE is for --repair"});
    }
    for (std::string& source : request.sources) source = absolute_source(source);
    const json::value result = run_with_progress(globals, api::path::kVerify, api::to_text(request));
    const auto report = api::parse_reply<api::VerifyResult>(result);
    if (globals.json) {
        print_json(result);
    } else {
        for (const std::string& line : report.repaired) print_text(printable(line) + "\n");
        for (const std::string& problem : report.problems) print_text(printable(problem) + "\n");
        print_text(fmt::format("{} chunks checked, {} read, {} problems\n", report.chunks_checked,
                               human_bytes(report.bytes_checked), report.problems.size()));
    }
    if (!report.problems.empty()) {
        throw api::FailureError({"corrupt", fmt::format("verify found {} problems", report.problems.size())});
    }
}

void run_upkeep(const Globals& globals, const api::UpkeepRequest& request) {
    const json::value result = run_with_progress(globals, api::path::kUpkeep, api::to_text(request));
    const auto report = api::parse_reply<api::UpkeepResult>(result);
    if (globals.json) {
        print_json(result);
    } else {
        for (const std::string& problem : report.problems) print_text(printable(problem) + "\n");
        const std::string_view way = report.freed_bytes < 0 ? "grew by" : "freed";
        print_text(fmt::format("compressed {} anew, {} {}; {} packs instead of {}\n",
                               human_bytes(report.compressed_bytes), way,
                               human_bytes(static_cast<std::uint64_t>(std::abs(report.freed_bytes))),
                               report.packs_written, report.packs_removed));
        if (request.scrub) {
            print_text(fmt::format("{} read, {} problems\n", human_bytes(report.read_bytes), report.problems.size()));
        }
    }
    if (!report.problems.empty()) {
        throw api::FailureError({"corrupt", fmt::format("the scrub found {} problems", report.problems.size())});
    }
}

void run_df(const Globals& globals, const std::string& chart_path) {
    check_chart_path(chart_path);
    const json::value reply = globals.connect().get(std::string(api::path::kUsage));
    const auto usage = api::parse_reply<api::Usage>(reply);
    if (!chart_path.empty()) write_chart(chart_path, usage_chart(usage));
    if (globals.json) return print_json(reply);
    Table images({{"IMAGE"}, {"LOGICAL", true}, {"STORED", true}, {"UNIQUE", true}});
    for (const api::ImageUsage& image : usage.images) {
        images.add({printable(image.name), human_bytes(image.logical_bytes), human_bytes(image.stored_bytes),
                    human_bytes(image.unique_bytes)});
    }
    images.print();
    const std::uint64_t total = usage.pack_bytes + usage.index_bytes + usage.recipe_bytes + usage.tree_bytes +
                                usage.mount_bytes + usage.other_bytes;
    Table parts({{"\nON DISK"}, {"BYTES", true}});
    parts.add({"packs (chunks)", human_bytes(usage.pack_bytes)});
    parts.add({"recipes (layers)", human_bytes(usage.recipe_bytes)});
    parts.add({"image trees", human_bytes(usage.tree_bytes)});
    parts.add({"index", human_bytes(usage.index_bytes)});
    parts.add({"mounts", human_bytes(usage.mount_bytes)});
    parts.add({"other", human_bytes(usage.other_bytes)});
    parts.add({"total", human_bytes(total)});
    if (usage.max_bytes != 0) parts.add({"limit", human_bytes(usage.max_bytes)});
    parts.add({"gc would free", human_bytes(usage.reclaimable_bytes)});
    parts.print();
}

void daemon_status(const Globals& globals) {
    Connection connection(globals.places(), false);
    const json::value reply = connection.get(std::string(api::path::kPing));
    if (globals.json) return print_json(reply);
    const auto ping = api::parse_reply<api::Ping>(reply);
    print_text(fmt::format("laminad {} runs as process {}, store {}\n", ping.version, ping.pid, ping.store));
}

bool is_gone(const Globals& globals) {
    try {
        Connection connection(globals.places(), false);
        connection.get(std::string(api::path::kPing));
        return false;
    } catch (const api::FailureError&) {  // Nobody answers any more: that is what we wait for.
        return true;
    }
}

void daemon_stop(const Globals& globals) {
    constexpr auto kLimit = std::chrono::seconds(30);
    Connection(globals.places(), false).post(api::path::kStop, "{}");
    const auto end = std::chrono::steady_clock::now() + kLimit;
    while (!is_gone(globals)) {
        if (std::chrono::steady_clock::now() > end) {
            throw api::FailureError({"timed_out", "the daemon still answers after 30 seconds"});
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
}

void add_daemon(const CommandContext& context) {
    CLI::App* const daemon = context.app.add_subcommand("daemon", "Start, stop or look at the daemon");
    daemon->require_subcommand(1);
    daemon->fallthrough();
    const auto add = [&](const char* name, const char* help, void (*run)(const Globals&)) {
        daemon->add_subcommand(name, help)->fallthrough()->callback([context, run] {
            context.run = [&globals = context.globals, run] { run(globals); };
        });
    };
    add("start", "Start it, if none answers", [](const Globals& globals) { globals.connect(); });
    add("stop", "End it; mounts go on", daemon_stop);
    add("status", "Show what runs", daemon_status);
}

}  // namespace

void add_upkeep_commands(const CommandContext& context) {
    const auto gc_args = std::make_shared<UpkeepArguments>();
    CLI::App* const gc = context.app.add_subcommand("gc", "Remove what no image, mount or job needs");
    gc->add_flag("--dry-run", gc_args->flag, "Only tell what would be freed");
    gc->callback([context, gc_args] {
        context.run = [&globals = context.globals, gc_args] { run_gc(globals, gc_args->flag); };
    });

    const auto verify_args = std::make_shared<api::VerifyRequest>();
    CLI::App* const verify = context.app.add_subcommand("verify", "Check that the store is sound");
    verify->add_flag("--data", verify_args->data, "Read and check every byte, not only the structure");
    verify->add_flag("--repair", verify_args->repair, "Mend what can be mended, then check every byte");
    verify->add_option("SOURCE", verify_args->sources, "Where good copies may be had, as for import");
    verify->callback([context, verify_args] {
        context.run = [&globals = context.globals, verify_args] { run_verify(globals, *verify_args); };
    });

    const auto upkeep_args = std::make_shared<api::UpkeepRequest>();
    CLI::App* const upkeep = context.app.add_subcommand("upkeep", "Compress densely what was compressed quickly");
    upkeep->add_flag("--scrub", upkeep_args->scrub, "Also read and check every byte of the packs");
    upkeep->add_option("--rate", upkeep_args->bytes_per_second, "At most so many bytes a second (k, M, G); 0: no limit")
        ->transform(CLI::AsSizeValue(false));
    upkeep->callback([context, upkeep_args] {
        context.run = [&globals = context.globals, upkeep_args] { run_upkeep(globals, *upkeep_args); };
    });

    const auto chart_path = std::make_shared<std::string>();
    CLI::App* const df = context.app.add_subcommand("df", "Show what the store holds and what it takes on disk");
    df->add_option("--chart", *chart_path, "Also draw what shares what, into FILE.svg");
    df->callback([context, chart_path] {
        context.run = [&globals = context.globals, chart_path] { run_df(globals, *chart_path); };
    });
    add_daemon(context);
}

}  // namespace lamina::client
