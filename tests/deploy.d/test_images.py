"""The migration Job's name follows the image: a Job cannot be changed once it exists."""

import re
import tomllib
import unittest

import manifests
from manifests import container_of, named, objects, render


class Images(unittest.TestCase):
    REPLACEMENTS = [
        {"newTag": "0.2.0"},
        {"newTag": "0.2.1"},
        {"newName": "registry.example.com:5000/team/collections-service", "newTag": "0.2.0"},
        {"newName": "registry.example.com:5000/team/collections-service", "newTag": "v0.2.0_RC-1"},
        {"newName": "registry.example.com/collections-service", "digest": "sha256:" + "0123456789abcdef" * 4},
        {"newName": "registry.example.com:5000/collections-service", "digest": "sha256:" + "fedcba9876543210" * 4},
        {"digest": "sha256:" + "0123456789abcdef" * 4},
    ]

    PATCH = "- {op: replace, path: /data/COLLECTIONS_DRAIN_SECONDS, value: '10'}\n"

    def job_of(self, image, **settings):
        rendered = render(images=[{"name": "collections-service", **image}], **settings)
        [job] = objects(rendered, "Job")
        # The ConfigMap is what carries the name.
        self.assertEqual(named(rendered, "ConfigMap", job["metadata"]["name"])["data"], {"image": container_of(job)["image"]})
        expected = image.get("newName", "collections-service")
        expected += "@" + image["digest"] if "digest" in image else ":" + image["newTag"]
        self.assertEqual(container_of(job)["image"], expected)
        self.assertEqual(container_of(named(rendered, "Deployment", "collections-service"))["image"], expected)
        return job["metadata"]["name"]

    def test_each_image_has_a_job_of_its_own(self):
        names = [self.job_of(image) for image in self.REPLACEMENTS]
        self.assertEqual(len(set(names)), len(self.REPLACEMENTS), names)
        for name in names:
            # A DNS label, for Pods' names begin with it.
            self.assertRegex(name, r"^collections-service-migrate-[a-z0-9]{10}$")

    def test_the_same_image_has_the_same_job(self):
        self.assertEqual(self.job_of(self.REPLACEMENTS[2]), self.job_of(self.REPLACEMENTS[2]))
        # Also where something else changes.
        changed = [{"target": {"kind": "ConfigMap", "name": "collections-service"}, "patch": self.PATCH}]
        self.assertEqual(self.job_of(self.REPLACEMENTS[2]), self.job_of(self.REPLACEMENTS[2], patches=changed))

    def test_the_default_image_is_that_of_the_version(self):
        version = tomllib.loads((manifests.ROOT / "Cargo.toml").read_text())["package"]["version"]
        for name in ("base", "overlays/prod"):
            [job] = objects(manifests.renders()[name], "Job")
            self.assertTrue(container_of(job)["image"].endswith(f":{version}"), name)

    def test_overlays_differ(self):
        names = set()
        for overlay in manifests.OVERLAYS:
            [job] = objects(manifests.renders()[f"overlays/{overlay}"], "Job")
            self.assertTrue(re.search(r"-[a-z0-9]{10}$", job["metadata"]["name"]))
            names.add(job["metadata"]["name"])
        self.assertEqual(len(names), len(manifests.OVERLAYS))
