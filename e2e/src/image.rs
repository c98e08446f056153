// SPDX-License-Identifier: Apache-2.0
//! Small container images as docker-archive files, written without a container engine: one layer, static binaries.

use std::fs::{self, File};
use std::io::{BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::layout::{AGNHOST_IMAGE, Layout, PAUSE_IMAGE};
use crate::preflight::find_program;
use crate::progress::step;

/// A file or a symbolic link in an image.
#[derive(Debug, Clone)]
pub enum Entry {
    /// An executable copied from this machine.
    Binary {
        /// Where it is here.
        from: PathBuf,
        /// Where it goes in the image, without a leading slash.
        to: &'static str,
    },
    /// A symbolic link.
    Link {
        /// Where the link is in the image, without a leading slash.
        at: &'static str,
        /// What it says.
        target: &'static str,
    },
}

/// An image to be written.
#[derive(Debug)]
pub struct Image<'a> {
    /// Its name with its tag.
    pub name: &'a str,
    /// What it runs.
    pub entrypoint: &'a [&'a str],
    /// The arguments unless a pod gives some.
    pub cmd: &'a [&'a str],
    /// What it holds.
    pub entries: &'a [Entry],
}

/// Writes the images that every node needs before any pod runs, unless they are there and newer than their binaries.
pub fn write_base_images(layout: &Layout) -> Result<()> {
    let folder = layout.base_images();
    fs::create_dir_all(&folder).with_context(|| format!("failed to create {}", folder.display()))?;
    let busybox = find_program("busybox").context("failed to find busybox: install busybox-static")?;
    let binary = |to| Entry::Binary {
        from: busybox.clone(),
        to,
    };
    let pause = Image {
        name: PAUSE_IMAGE,
        entrypoint: &["/bin/busybox", "sleep", "1000000000"],
        cmd: &[],
        entries: &[binary("bin/busybox")],
    };
    let agnhost = Image {
        name: AGNHOST_IMAGE,
        entrypoint: &["/agnhost"],
        cmd: &["pause"],
        entries: &[
            Entry::Binary {
                from: layout.bin("agnhost"),
                to: "agnhost",
            },
            Entry::Link {
                at: "agnhost-2",
                target: "/agnhost",
            },
            binary("bin/busybox"),
            Entry::Link {
                at: "bin/sh",
                target: "busybox",
            },
        ],
    };
    for (image, file) in [(pause, "pause.tar"), (agnhost, "agnhost.tar")] {
        let path = folder.join(file);
        if !is_newer(&path, &image) {
            step(&format!("writing image {}", image.name));
            image.write(&path)?;
        }
    }
    Ok(())
}

fn is_newer(path: &Path, image: &Image<'_>) -> bool {
    let modified = |path: &Path| fs::metadata(path).and_then(|data| data.modified()).ok();
    let Some(written) = modified(path) else { return false };
    image.entries.iter().all(|entry| match entry {
        Entry::Binary { from, .. } => modified(from).is_some_and(|changed| changed < written),
        Entry::Link { .. } => true,
    })
}

impl Image<'_> {
    /// Writes the image as a docker-archive, which `ctr images import` and `docker load` take.
    pub fn write(&self, path: &Path) -> Result<()> {
        let layer = self
            .layer()
            .with_context(|| format!("failed to pack image {}", self.name))?;
        let config = json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "config": {"Entrypoint": self.entrypoint, "Cmd": self.cmd, "Env": ["PATH=/bin:/"]},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{:x}", Sha256::digest(&layer))]},
        });
        let manifest = json!([{"Config": "config.json", "RepoTags": [self.name], "Layers": ["layer.tar"]}]);
        // Written beside and renamed, so that an interrupted run leaves no half archive that looks finished.
        let unfinished = path.with_extension("tar.part");
        let file = File::create(&unfinished).with_context(|| format!("failed to create {}", unfinished.display()))?;
        let mut archive = tar::Builder::new(BufWriter::new(file));
        for (name, bytes) in [
            ("config.json", config.to_string().into_bytes()),
            ("manifest.json", manifest.to_string().into_bytes()),
            ("layer.tar", layer),
        ] {
            let mut header = header(tar::EntryType::Regular, 0o644);
            header.set_size(bytes.len() as u64);
            archive.append_data(&mut header, name, bytes.as_slice())?;
        }
        archive.into_inner()?.flush()?;
        fs::rename(&unfinished, path).with_context(|| format!("failed to rename {}", unfinished.display()))
    }

    fn layer(&self) -> Result<Vec<u8>> {
        let mut layer = tar::Builder::new(Vec::new());
        for (folder, mode) in [
            ("bin", 0o755),
            ("dev", 0o755),
            ("etc", 0o755),
            ("proc", 0o755),
            ("sys", 0o755),
            ("tmp", 0o1777),
        ] {
            layer.append_data(&mut header(tar::EntryType::Directory, mode), folder, std::io::empty())?;
        }
        for entry in self.entries {
            match entry {
                Entry::Binary { from, to } => {
                    let mut bytes = Vec::new();
                    File::open(from)
                        .and_then(|mut file| file.read_to_end(&mut bytes))
                        .with_context(|| format!("failed to read {}", from.display()))?;
                    ensure!(
                        is_static(&bytes),
                        "{} is linked dynamically: an image needs it static",
                        from.display()
                    );
                    let mut header = header(tar::EntryType::Regular, 0o755);
                    header.set_size(bytes.len() as u64);
                    layer.append_data(&mut header, to, bytes.as_slice())?;
                }
                Entry::Link { at, target } => {
                    layer.append_link(&mut header(tar::EntryType::Symlink, 0o777), at, target)?;
                }
            }
        }
        Ok(layer.into_inner()?)
    }
}

fn header(kind: tar::EntryType, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(0);
    // The same bytes give the same digest whenever they are packed.
    header.set_mtime(0);
    header
}

/// Whether an ELF file asks for no dynamic loader: it has no `PT_INTERP` program header (3, in elf.h).
fn is_static(elf: &[u8]) -> bool {
    let word = |at: usize, len: usize| -> Option<u64> {
        let bytes = elf.get(at..at + len)?;
        Some(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    };
    let headers = || -> Option<bool> {
        if elf.get(..5)? != b"\x7fELF\x02" {
            return None;
        }
        let (offset, size, count) = (word(32, 8)?, word(54, 2)?, word(56, 2)?);
        for index in 0..count {
            let at = usize::try_from(offset + index * size).ok()?;
            if word(at, 4)? == 3 {
                return Some(false);
            }
        }
        Some(true)
    };
    headers().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::{Entry, Image, is_static};

    #[test]
    fn a_dynamic_program_is_told_from_a_static_one() {
        assert!(!is_static(b"#!/bin/sh\n"));
        assert!(!is_static(&[]));
        // Tests themselves are linked dynamically.
        assert!(!is_static(&std::fs::read("/proc/self/exe").unwrap()));
    }

    #[test]
    fn a_dynamic_program_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let image = Image {
            name: "test:1",
            entrypoint: &["/x"],
            cmd: &[],
            entries: &[Entry::Binary {
                from: "/proc/self/exe".into(),
                to: "x",
            }],
        };
        let error = format!("{:#}", image.write(&folder.path().join("x.tar")).unwrap_err());
        assert!(error.contains("linked dynamically"), "{error}");
    }

    #[test]
    fn an_archive_holds_manifest_config_and_layer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.tar");
        let image = Image {
            name: "test:1",
            entrypoint: &["/x"],
            cmd: &[],
            entries: &[Entry::Link { at: "x", target: "/y" }],
        };
        image.write(&path).unwrap();
        let mut archive = tar::Archive::new(std::fs::File::open(&path).unwrap());
        let names: Vec<String> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        assert_eq!(names, ["config.json", "manifest.json", "layer.tar"]);
    }
}
