// SPDX-License-Identifier: Apache-2.0
//! Wardline's own images: static binaries, a Dockerfile each, archives in `target/images`.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum};
use sha2::{Digest as _, Sha256};

use crate::command::{output_of, run, stream};
use crate::image::{Entry, Image};
use crate::layout::{CRASHING_IMAGE, Layout, NODES, OPEN_IMAGE, OTHER_LAYOUT_IMAGE, TRAFFIC_IMAGE};
use crate::node;
use crate::preflight::find_program;
use crate::progress::step;
use crate::sbom;

/// No image may be larger, in bytes.
const LARGEST: u64 = 30 << 20;

/// buildah's configuration, in `target/images`.
const CONTAINERS_CONF: &str = "containers.conf";

/// The images with a Dockerfile: name, folder of the Dockerfile, and the binaries, each of the package of its name.
const IMAGES: [(&str, &str, &[&str]); 2] = [
    ("operator", "operator", &["wardline-operator"]),
    ("node", "node-daemon", &["wardline-node", "wardline-cni"]),
];

/// What builds the images from the Dockerfiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Builder {
    /// Needs no service, and no privileges beyond root's
    Buildah,
    /// With its daemon
    Docker,
    /// Like docker, without a daemon
    Podman,
}

/// What images run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Arch {
    /// x86-64
    Amd64,
    /// 64-bit ARM
    Arm64,
}

impl Arch {
    fn triple(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-gnu",
            Self::Arm64 => "aarch64-unknown-linux-gnu",
        }
    }
}

/// How the images are named and built.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// What the names begin with: PREFIX/operator and PREFIX/node
    #[arg(long, env = "IMAGE_PREFIX", default_value = "wardline")]
    pub prefix: String,
    /// The tag of the images
    #[arg(long, env = "VERSION", default_value = env!("CARGO_PKG_VERSION"))]
    pub version: String,
    /// What the images run on; this machine's, unless given
    #[arg(long, env = "ARCH")]
    pub arch: Option<Arch>,
    /// The program that builds them; the first that is installed, unless given
    #[arg(long, env = "BUILDER")]
    pub builder: Option<Builder>,
}

impl Options {
    /// The names of images that are built elsewhere.
    pub fn named(prefix: &str, version: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
            version: version.to_owned(),
            arch: None,
            builder: None,
        }
    }
}

/// An image as it lies in `target/images`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// Its name with its tag.
    pub name: String,
    /// The docker-archive.
    pub archive: PathBuf,
    /// What it was made from; changes with the binary, the Dockerfile and the name.
    pub fingerprint: String,
}

/// Builds the binaries and the images that changed, prints their sizes, and refuses what is too large.
pub fn build(layout: &Layout, options: &Options) -> Result<Vec<Built>> {
    refuse_another_machine(options)?;
    let binaries = build_binaries(layout)?;
    fs::create_dir_all(layout.images()).context("failed to create target/images")?;
    let networks = layout.images().join("networks");
    fs::write(
        layout.images().join(CONTAINERS_CONF),
        format!("[network]\nnetwork_config_dir = \"{}\"\n", networks.display()),
    )
    .context("failed to write the configuration of buildah")?;
    let mut all = Vec::new();
    let host = host()?;
    for (short, folder, names) in IMAGES {
        let name = format!("{}/{short}:{}", options.prefix, options.version);
        let dockerfile = layout.workspace().join(folder).join("Dockerfile");
        let contents: Vec<PathBuf> = names.iter().map(|binary| binaries.join(binary)).collect();
        let sources: Vec<&Path> = contents.iter().chain([&dockerfile]).map(PathBuf::as_path).collect();
        let built = plan(layout, short, &name, &sources)?;
        let described = sbom::path(&built.archive);
        if !is_current(&built) || !described.is_file() {
            step(&format!("building image {name}"));
            build_one(layout, options, &built, &contents, &dockerfile)?;
            let of = sbom::Contents {
                name: name.trim_end_matches(&format!(":{}", options.version)),
                version: &options.version,
                binaries: names,
                target: &host,
            };
            sbom::write(layout, of, &binaries, &described)?;
            finish(&built)?;
        }
        all.push(built);
    }
    all.push(traffic(layout, &binaries.join("traffic"))?);
    for image in &all {
        let size = fs::metadata(&image.archive)
            .context("failed to read the size of an image")?
            .len();
        #[expect(clippy::cast_precision_loss, reason = "sizes of images are far below 2^52")]
        let mebibytes = size as f64 / f64::from(1 << 20);
        step(&format!(
            "  {:<36} {mebibytes:6.1} MiB  {}",
            image.name,
            image.archive.display()
        ));
        ensure!(size <= LARGEST, "{} is larger than {} MiB", image.name, LARGEST >> 20);
    }
    Ok(all)
}

/// Imports images into the containerd of each node of the running lab, those that it does not have yet.
///
/// Returns whether any was imported.
pub fn import(layout: &Layout, images: &[Built]) -> Result<bool> {
    let mut changed = false;
    for image in images {
        // The note lives as long as the nodes do: their containerds start empty.
        let note = layout
            .run()
            .join(format!("{}.image", image.name.replace(['/', ':'], "_")));
        if fs::read_to_string(&note).is_ok_and(|imported| imported == image.fingerprint) {
            continue;
        }
        step(&format!("importing image {}", image.name));
        for spec in &NODES {
            node::import_image(layout, spec, &image.archive)?;
        }
        fs::write(&note, &image.fingerprint).with_context(|| format!("failed to write {}", note.display()))?;
        changed = true;
    }
    Ok(changed)
}

/// Builds everything that ships as static binaries, in a target folder of its own: other flags would make Cargo build
/// the dependencies of everyday work anew each time.
fn build_binaries(layout: &Layout) -> Result<PathBuf> {
    let host = host()?;
    step(&format!("building static binaries for {host}"));
    let mut cargo = ship(layout, &host);
    cargo.args(["--package=wardline-traffic", "--bin=traffic"]);
    for binary in IMAGES.iter().flat_map(|(_, _, binaries)| *binaries) {
        cargo.arg(format!("--package={binary}")).arg(format!("--bin={binary}"));
    }
    stream(&mut cargo)?;
    Ok(layout.target().join("ship").join(host).join("ship"))
}

fn ship(layout: &Layout, host: &str) -> Command {
    let mut cargo = Command::new("cargo");
    cargo
        .current_dir(layout.workspace())
        .env("RUSTFLAGS", "-C target-feature=+crt-static");
    cargo
        .args(["build", "--quiet", "--profile=ship", "--target", host, "--target-dir"])
        .arg(layout.target().join("ship"));
    cargo
}

/// Where [`build`] leaves a binary before it goes into an image.
pub fn static_binary(layout: &Layout, name: &str) -> Result<PathBuf> {
    Ok(layout.target().join("ship").join(host()?).join("ship").join(name))
}

/// Binaries are built for the machine that builds them: static ones link glibc, libelf and zlib of their target, and
/// nothing here has those of another.
fn refuse_another_machine(options: &Options) -> Result<()> {
    let (host, Some(arch)) = (host()?, options.arch) else {
        return Ok(());
    };
    let wanted = arch.triple();
    ensure!(
        host == wanted,
        "failed to build images for {wanted} on {host}: that needs Rust's standard library for it (`rustup target add \
         {wanted}`), a C compiler for it, and its glibc, libelf and zlib as static libraries, and is not set up here. Run \
         `make images` on such a machine instead: nothing in the build is bound to this one"
    );
    Ok(())
}

/// The target triple of this machine.
fn host() -> Result<String> {
    let version = run("rustc", ["-vV"])?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.context("failed to read rustc's host: `rustc -vV` does not name it")?;
    Ok(host.to_owned())
}

fn plan(layout: &Layout, short: &str, name: &str, sources: &[&Path]) -> Result<Built> {
    let mut digest = Sha256::new();
    digest.update(name);
    for source in sources {
        digest.update(fs::read(source).with_context(|| format!("failed to read {}", source.display()))?);
    }
    let archive = layout.images().join(format!("{short}.tar"));
    Ok(Built {
        name: name.to_owned(),
        archive,
        fingerprint: format!("{:x}", digest.finalize()),
    })
}

fn stamp(built: &Built) -> PathBuf {
    built.archive.with_extension("stamp")
}

fn is_current(built: &Built) -> bool {
    built.archive.is_file() && fs::read_to_string(stamp(built)).is_ok_and(|made| made == built.fingerprint)
}

fn finish(built: &Built) -> Result<()> {
    fs::write(stamp(built), &built.fingerprint).with_context(|| format!("failed to note image {}", built.name))
}

/// The test server and client: no part of the product, so it has no Dockerfile.
fn traffic(layout: &Layout, binary: &Path) -> Result<Built> {
    let built = plan(layout, "traffic", TRAFFIC_IMAGE, &[binary])?;
    if !is_current(&built) {
        let busybox = find_program("busybox").context("failed to find busybox: install busybox-static")?;
        let entries = [
            Entry::Binary {
                from: binary.to_path_buf(),
                to: "bin/traffic",
            },
            Entry::Binary {
                from: busybox,
                to: "bin/busybox",
            },
            Entry::Link {
                at: "bin/sh",
                target: "busybox",
            },
        ];
        let image = Image {
            name: TRAFFIC_IMAGE,
            entrypoint: &["/bin/traffic"],
            cmd: &["serve"],
            entries: &entries,
        };
        image.write(&built.archive)?;
        finish(&built)?;
    }
    Ok(built)
}

/// Images of a daemon that no node can be well with, imported into the nodes.
pub fn import_broken(layout: &Layout) -> Result<()> {
    let folder = layout.images().join("broken");
    fs::create_dir_all(&folder).with_context(|| format!("failed to create {}", folder.display()))?;
    let open = folder.join("wardline-node");
    fs::write(&open, let_everything_through(layout)?).with_context(|| format!("failed to write {}", open.display()))?;
    let busybox = find_program("busybox").context("failed to find busybox: install busybox-static")?;
    let daemons = [
        ("open", OPEN_IMAGE, open, static_binary(layout, "wardline-cni")?),
        ("crashing", CRASHING_IMAGE, busybox.clone(), busybox),
    ];
    let mut images = Vec::new();
    for (short, name, daemon, plugin) in daemons {
        images.push(daemon_image(layout, short, name, daemon, plugin)?);
    }
    import(layout, &images).map(drop)
}

/// The image of a daemon whose maps have another layout, built and imported into the nodes.
pub fn import_other_layout(layout: &Layout) -> Result<()> {
    const BINARY: &str = "wardline-node-other-layout";
    step("building the daemon with another layout of its maps");
    let mut cargo = ship(layout, &host()?);
    cargo.args(["--package=wardline-node", "--features=other-layout", "--bin", BINARY]);
    // It need not be fast, and is to be built fast.
    cargo.args(["--config", "profile.ship.package.wardline-node.opt-level=1"]);
    stream(&mut cargo)?;
    let (daemon, plugin) = (static_binary(layout, BINARY)?, static_binary(layout, "wardline-cni")?);
    let image = daemon_image(layout, "other-layout", OTHER_LAYOUT_IMAGE, daemon, plugin)?;
    import(layout, &[image]).map(drop)
}

fn daemon_image(layout: &Layout, short: &str, name: &str, daemon: PathBuf, plugin: PathBuf) -> Result<Built> {
    let built = plan(layout, short, name, &[&daemon, &plugin])?;
    let binary = |from, to| Entry::Binary { from, to };
    let image = Image {
        name,
        entrypoint: &["/wardline-node"],
        cmd: &[],
        entries: &[binary(daemon, "wardline-node"), binary(plugin, "wardline-cni")],
    };
    image.write(&built.archive)?;
    Ok(built)
}

/// The daemon that ships, but for the last instructions of its packet programs: they let every packet pass.
fn let_everything_through(layout: &Layout) -> Result<Vec<u8>> {
    // r0 = -1 (TCX_NEXT), in the place of r0 = rN before an exit.
    const NEXT: [u8; 8] = [0xb7, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
    const EXIT: [u8; 8] = [0x95, 0, 0, 0, 0, 0, 0, 0];
    let returns_register = |code: &[u8]| {
        matches!(code[0], 0xbc | 0xbf) && code[1].is_multiple_of(16) && code[2..8] == [0; 6] && code[8..16] == EXIT
    };
    let path = static_binary(layout, "wardline-node")?;
    let mut daemon = fs::read(&path).with_context(|| format!("failed to read {}", path.display()))?;
    let programs =
        packet_programs(&daemon).with_context(|| format!("failed to find programs in {}", path.display()))?;
    let places: Vec<usize> = (programs.start..programs.end - 16)
        .step_by(8)
        .filter(|at| returns_register(&daemon[*at..*at + 16]))
        .collect();
    ensure!(
        places.len() >= 2,
        "failed to find where programs end in {}",
        path.display()
    );
    for at in places {
        daemon[at..at + 8].copy_from_slice(&NEXT);
    }
    Ok(daemon)
}

/// Where the object file of the packet programs lies in a binary.
fn packet_programs(binary: &[u8]) -> Option<Range<usize>> {
    // A little-endian 64-bit ELF file for the machine EM_BPF, and the fields of its header that tell its length.
    const MAGIC: [u8; 6] = [0x7f, b'E', b'L', b'F', 2, 1];
    const EM_BPF: [u8; 2] = 247_u16.to_le_bytes();
    let is_start = |at: &usize| binary[*at..].starts_with(&MAGIC) && binary[*at + 18..*at + 20] == EM_BPF;
    let start = (0..binary.len().checked_sub(64)?).find(is_start)?;
    let half = |at: usize| usize::from(u16::from_le_bytes([binary[start + at], binary[start + at + 1]]));
    let sections = u64::from_le_bytes(binary[start + 40..start + 48].try_into().ok()?);
    let end = start + usize::try_from(sections).ok()? + half(58) * half(60);
    (end <= binary.len()).then_some(start..end)
}

fn build_one(layout: &Layout, options: &Options, built: &Built, binaries: &[PathBuf], dockerfile: &Path) -> Result<()> {
    let context = tempfile::tempdir_in(layout.images()).context("failed to make a folder for the build context")?;
    for binary in binaries {
        let name = binary.file_name().context("failed to name the binary")?;
        fs::copy(binary, context.path().join(name)).with_context(|| format!("failed to copy {}", binary.display()))?;
    }
    let _ = fs::remove_file(&built.archive);
    let builder = builder(options)?;
    let mut bud = program(layout, builder);
    match builder {
        Builder::Buildah => bud.args(["bud", "--isolation=chroot", "--quiet"]),
        Builder::Docker | Builder::Podman => bud.args(["build", "--quiet"]),
    };
    bud.arg(format!("--build-arg=VERSION={}", options.version))
        .args(["--tag", &built.name, "--file"]);
    output_of(bud.arg(dockerfile).arg(context.path()))?;
    let mut save = program(layout, builder);
    let archive = built.archive.display();
    match builder {
        Builder::Buildah => save.args([
            "push",
            "--quiet",
            &built.name,
            &format!("docker-archive:{archive}:{}", built.name),
        ]),
        Builder::Docker => save.args(["save", "--output", &archive.to_string(), &built.name]),
        Builder::Podman => save.args([
            "save",
            "--format=docker-archive",
            "--output",
            &archive.to_string(),
            &built.name,
        ]),
    };
    output_of(&mut save)?;
    Ok(())
}

fn builder(options: &Options) -> Result<Builder> {
    if let Some(builder) = options.builder {
        return Ok(builder);
    }
    for (builder, program) in [
        (Builder::Buildah, "buildah"),
        (Builder::Podman, "podman"),
        (Builder::Docker, "docker"),
    ] {
        if find_program(program).is_some() {
            return Ok(builder);
        }
    }
    bail!("no image builder is installed: `make deps` installs buildah")
}

fn program(layout: &Layout, builder: Builder) -> Command {
    match builder {
        Builder::Docker => Command::new("docker"),
        Builder::Podman => Command::new("podman"),
        Builder::Buildah => {
            // Its own store, and a driver that works on any file system.
            let mut command = Command::new("buildah");
            command.arg("--storage-driver=vfs");
            command.arg("--root").arg(layout.images().join("buildah"));
            command.arg("--runroot").arg(layout.images().join("buildah-run"));
            // Or it makes /etc/cni/net.d with a lock file in it, though no build here has a network.
            command.env("CONTAINERS_CONF", layout.images().join(CONTAINERS_CONF));
            command
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Arch, Options, finish, host, is_current, plan, refuse_another_machine};
    use crate::layout::Layout;

    #[test]
    fn images_for_another_machine_are_refused_with_what_is_missing() {
        let mut options = Options::named("wardline", "1");
        refuse_another_machine(&options).unwrap();
        for arch in [Arch::Amd64, Arch::Arm64] {
            options.arch = Some(arch);
            match refuse_another_machine(&options) {
                Ok(()) => assert_eq!(arch.triple(), host().unwrap()),
                Err(error) => {
                    assert_ne!(arch.triple(), host().unwrap());
                    assert!(
                        error
                            .to_string()
                            .contains(&format!("rustup target add {}", arch.triple())),
                        "{error}"
                    );
                }
            }
        }
    }

    #[test]
    fn an_image_is_built_again_when_a_source_or_its_name_changes() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("binary");
        std::fs::write(&source, "one").unwrap();
        let layout = Layout::of_workspace();
        let planned = |name: &str| {
            let mut built = plan(&layout, "x", name, &[&source]).unwrap();
            built.archive = folder.path().join("x.tar");
            built
        };
        let built = planned("x:1");
        assert!(!is_current(&built), "there is no archive");
        std::fs::write(&built.archive, "").unwrap();
        assert!(!is_current(&built), "the archive is not finished");
        finish(&built).unwrap();
        assert!(is_current(&built));
        assert!(!is_current(&planned("x:2")));
        std::fs::write(&source, "two").unwrap();
        assert!(!is_current(&planned("x:1")));
    }
}
