package main

type attachCmd struct{}

func (c *attachCmd) Run(g *globals) error { panic("unwritten") }
